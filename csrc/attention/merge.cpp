// Merging of partial results: checks, Meta and gradients.
#include "attention/merge.h"

#include "common/autograd.h"
#include "common/check.h"
#include "common/fresh.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

namespace fulgurite {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void check_partials(const char* op, TensorList outs, TensorList lses) {
  FULGURITE_CHECK(!outs.empty(), "expected outs with at least one tensor, got none");
  FULGURITE_CHECK(outs.size() == lses.size(), "expected as many lses as outs, ", outs.size(),
                  ", got ", lses.size());
  check_float(op, "outs", outs[0]);
  for (const Tensor& out : outs) check_same_dtype(op, "outs", out, "the first", outs[0]);
  for (const Tensor& lse : lses)
    FULGURITE_CHECK_TYPE(lse.scalar_type() == accumulate_type(outs[0].scalar_type()),
                         "expected lses of dtype ", accumulate_type(outs[0].scalar_type()),
                         ", got ", lse.scalar_type());
  FULGURITE_CHECK(outs[0].dim() >= 1, "expected outs of shape [..., N, D], got ",
                  outs[0].sym_sizes());
  const c10::SymIntArrayRef sizes = outs[0].sym_sizes(), rows = sizes.slice(0, sizes.size() - 1);
  for (const Tensor& out : outs) {
    FULGURITE_CHECK(out.sym_sizes() == sizes, "expected outs of one shape ", sizes, ", got ",
                    out.sym_sizes());
    check_place(op, "outs", out, outs[0]);
  }
  for (const Tensor& lse : lses) {
    check_sizes(op, "lses", lse, rows);
    check_place(op, "lses", lse, outs[0]);
  }
}

}  // namespace

void check_merge(TensorList outs, TensorList lses) {
  check_partials("attention_merge", outs, lses);
}

void check_merge_backward(const OptionalTensor& grad_out, const OptionalTensor& grad_lse,
                          TensorList outs, TensorList lses, const Tensor& lse,
                          const c10::List<bool>& output_mask) {
  constexpr const char* op = "_attention_merge_backward";
  check_partials(op, outs, lses);
  const auto check_like = [&](const char* name, const Tensor& tensor, const Tensor& like) {
    check_same_dtype(op, name, tensor, "the result", like);
    check_sizes(op, name, tensor, like.sym_sizes());
  };
  if (grad_out) check_like("grad_out", *grad_out, outs[0]);
  if (grad_lse) check_like("grad_lse", *grad_lse, lses[0]);
  check_like("lse", lse, lses[0]);
  FULGURITE_CHECK_VALUE(output_mask.size() == 2 * outs.size(), "expected output_mask of ",
                        2 * outs.size(), " entries, outs and then lses, got ", output_mask.size());
}

namespace {

AttentionResult merge_meta(TensorList outs, TensorList lses) {
  check_merge(outs, lses);
  return {fresh_like(outs[0]), fresh_like(lses[0])};
}

/// A list without tensors reaches no device; it is refused here.
AttentionResult merge_empty(TensorList outs, TensorList lses) {
  check_merge(outs, lses);
  constexpr const char* op = "attention_merge";
  FULGURITE_CHECK_SERVED(false, "no kernel for device ", outs[0].device());
}

MergeGradients merge_backward_meta(const OptionalTensor& grad_out, const OptionalTensor& grad_lse,
                                   TensorList outs, TensorList lses, const Tensor& lse,
                                   const c10::List<bool>& output_mask) {
  check_merge_backward(grad_out, grad_lse, outs, lses, lse, output_mask);
  MergeGradients grads;
  auto& [grad_outs, grad_lses] = grads;
  for (size_t r = 0; r < outs.size(); ++r) {
    grad_outs.push_back(fresh_gradient(output_mask[r], outs[r]));
    grad_lses.push_back(fresh_gradient(output_mask[outs.size() + r], lses[r]));
  }
  return grads;
}

struct MergeFunction : torch::autograd::Function<MergeFunction> {
  static variable_list forward(AutogradContext* ctx, TensorList outs, TensorList lses) {
    at::AutoDispatchBelowADInplaceOrView below;
    static const auto merge = op_handle<MergeSignature>("attention_merge");
    const auto [out, lse] = merge.call(outs, lses);
    variable_list saved(outs.begin(), outs.end());
    saved.insert(saved.end(), lses.begin(), lses.end());
    saved.push_back(lse);
    ctx->save_for_backward(saved);
    ctx->set_materialize_grads(false);
    return {out, lse};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const size_t R = saved.size() / 2;
    variable_list result(2 * R);
    if (!grads[0].defined() && !grads[1].defined()) return result;
    const TensorList all(saved);
    c10::List<bool> mask;
    for (size_t i = 0; i < 2 * R; ++i) mask.push_back(ctx->needs_input_grad(i));
    static const auto op = op_handle<MergeBackwardSignature>("_attention_merge_backward");
    const auto [grad_outs, grad_lses] =
        op.call(if_defined(grads[0]), if_defined(grads[1]), all.slice(0, R), all.slice(R, R),
                saved.back(), mask);
    for (size_t r = 0; r < R; ++r) {
      if (mask[r]) result[r] = grad_outs[r];
      if (mask[R + r]) result[R + r] = grad_lses[r];
    }
    return result;
  }
};

AttentionResult merge_autograd(TensorList outs, TensorList lses) {
  const variable_list results = MergeFunction::apply(outs, lses);
  return {results[0], results[1]};
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, Meta, m) {
  m.impl("attention_merge", fulgurite::merge_meta);
  m.impl("_attention_merge_backward", fulgurite::merge_backward_meta);
}

TORCH_LIBRARY_IMPL(fulgurite, CompositeExplicitAutograd, m) {
  m.impl("attention_merge", fulgurite::merge_empty);
}

TORCH_LIBRARY_IMPL(fulgurite, Autograd, m) {
  m.impl("attention_merge", fulgurite::merge_autograd);
  m.impl("_attention_merge_backward", torch::autograd::autogradNotImplementedFallback());
}
