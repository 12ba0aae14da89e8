// Merging of partial results: checks, Meta and gradients.
#include "attention/merge.h"

#include "common/check.h"
#include "common/fresh.h"
#include "common/saved_arguments.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
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
    FULGURITE_CHECK(same_sizes(out.sym_sizes(), sizes), "expected outs of one shape ", sizes,
                    ", got ", out.sym_sizes());
    check_place(op, "outs", out, outs[0]);
  }
  for (const Tensor& lse : lses) {
    check_sizes(op, "lses", lse, rows);
    check_place(op, "lses", lse, outs[0]);
  }
}

}  // namespace

void check_merge(const MergeArgs& a) { check_partials("attention_merge", a.outs, a.lses); }

void check_merge_backward(const MergeBackwardArgs& a) {
  constexpr const char* op = "_attention_merge_backward";
  check_partials(op, a.outs, a.lses);
  const auto check_like = [&](const char* name, const Tensor& tensor, const Tensor& like) {
    check_same_dtype(op, name, tensor, "the result", like);
    check_sizes(op, name, tensor, like.sym_sizes());
  };
  if (a.grad_out) check_like("grad_out", *a.grad_out, a.outs[0]);
  if (a.grad_lse) check_like("grad_lse", *a.grad_lse, a.lses[0]);
  check_like("lse", a.lse, a.lses[0]);
  FULGURITE_CHECK_VALUE(a.output_mask.size() == 2 * a.outs.size(), "expected output_mask of ",
                        2 * a.outs.size(), " entries, outs and then lses, got ",
                        a.output_mask.size());
}

namespace {

AttentionResult merge_meta(const MergeArgs& args) {
  check_merge(args);
  return {fresh_like(args.outs[0]), fresh_like(args.lses[0])};
}

/// A list without tensors reaches no device; it is refused here.
AttentionResult merge_empty(const MergeArgs& args) {
  check_merge(args);
  constexpr const char* op = "attention_merge";
  FULGURITE_CHECK_SERVED(false, "no kernel for device ", args.outs[0].device());
}

MergeGradients merge_backward_meta(const MergeBackwardArgs& args) {
  check_merge_backward(args);
  const size_t R = args.outs.size();
  MergeGradients grads;
  auto& [grad_outs, grad_lses] = grads;
  for (size_t r = 0; r < R; ++r) {
    grad_outs.push_back(fresh_gradient(args.output_mask[r], args.outs[r]));
    grad_lses.push_back(fresh_gradient(args.output_mask[R + r], args.lses[r]));
  }
  return grads;
}

struct MergeFunction : torch::autograd::Function<MergeFunction> {
  static variable_list forward(AutogradContext* ctx, TensorList outs, TensorList lses) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [out, lse] = call(MergeArgs{outs, lses});
    variable_list saved;
    for (const TensorList list : {outs, lses})
      for (const Tensor& tensor : list) saved.push_back(savable(tensor));
    saved.push_back(saved_output(lse));
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
    const auto [grad_outs, grad_lses] =
        call(MergeBackwardArgs{if_defined(grads[0]), if_defined(grads[1]), all.slice(0, R),
                               all.slice(R, R), saved.back(), mask});
    for (size_t r = 0; r < R; ++r) {
      if (mask[r]) result[r] = grad_outs[r];
      if (mask[R + r]) result[R + r] = grad_lses[r];
    }
    return result;
  }
};

AttentionResult merge_autograd(const MergeArgs& args) {
  const variable_list results = MergeFunction::apply(args.outs, args.lses);
  return {results[0], results[1]};
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, Meta, m) {
  fulgurite::implement<fulgurite::merge_meta>(m);
  fulgurite::implement<fulgurite::merge_backward_meta>(m);
}

TORCH_LIBRARY_IMPL(fulgurite, CompositeExplicitAutograd, m) {
  fulgurite::implement<fulgurite::merge_empty>(m);
}

TORCH_LIBRARY_IMPL(fulgurite, Autograd, m) {
  fulgurite::implement<fulgurite::merge_autograd>(m);
  m.impl("_attention_merge_backward", torch::autograd::autogradNotImplementedFallback());
}
