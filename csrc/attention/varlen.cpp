// Attention over packed sequences: checks, Meta and gradients. Its schemas stand in ops.cpp.
#include "attention/varlen.h"

#include "attention/slopes.h"
#include "common/fresh.h"
#include "common/offsets.h"
#include "common/saved_arguments.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

namespace fulgurite {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

VarlenShape check_shapes(const char* op, const Tensor& query, const Tensor& key,
                         const Tensor& value, const Tensor& cu_seqlens_q,
                         const Tensor& cu_seqlens_k) {
  check_dim(op, "query", query, 3, "[Tq, Hq, D]");
  check_dim(op, "key", key, 3, "[Tk, Hkv, D]");
  check_dim(op, "value", value, 3, "[Tk, Hkv, Dv]");
  check_dim(op, "cu_seqlens_q", cu_seqlens_q, 1, "[sequences + 1]");
  check_dim(op, "cu_seqlens_k", cu_seqlens_k, 1, "[sequences + 1]");
  const VarlenShape s{cu_seqlens_q.sym_size(0) - 1,
                      query.sym_size(1),
                      key.sym_size(1),
                      query.sym_size(0),
                      key.sym_size(0),
                      query.sym_size(2),
                      value.sym_size(2)};
  FULGURITE_CHECK(key.sym_size(2) == s.D, "expected key of shape [Tk, Hkv, ", s.D, "], got ",
                  key.sym_sizes());
  FULGURITE_CHECK(same_size(value.sym_size(0), s.key_rows) && same_size(value.sym_size(1), s.Hkv),
                  "expected value of shape [", s.key_rows, ", ", s.Hkv, ", Dv], got ",
                  value.sym_sizes());
  FULGURITE_CHECK(is_multiple(s.Hq, s.Hkv), "expected Hq to be a multiple of Hkv = ", s.Hkv,
                  ", got ", s.Hq);
  FULGURITE_CHECK(s.sequences >= 0, "expected cu_seqlens_q of shape [sequences + 1], got ",
                  cu_seqlens_q.sym_sizes());
  FULGURITE_CHECK(same_size(cu_seqlens_k.sym_size(0), s.sequences + 1),
                  "expected cu_seqlens_k of cu_seqlens_q's shape [", s.sequences + 1, "], got ",
                  cu_seqlens_k.sym_sizes());
  check_place(op, "query", query, query);
  check_place(op, "key", key, query);
  check_place(op, "value", value, query);
  check_place(op, "cu_seqlens_q", cu_seqlens_q, query);
  check_place(op, "cu_seqlens_k", cu_seqlens_k, query);
  return s;
}

void check_scores(const char* op, const ScoreArgs& scores, const Tensor& query,
                  const VarlenShape& s) {
  // Nothing here has the shape of the scores, so N and M do not matter.
  const AttentionShape as_batch{s.sequences, s.Hq, s.Hkv, 0, 0, s.D, s.Dv};
  check_score_shapes(op, scores, query, as_batch);
  check_score_values(op, scores, as_batch);
}

}  // namespace

VarlenShape check_varlen(const VarlenArgs& a) {
  constexpr const char* op = "attention_varlen";
  check_float(op, "query", a.query);
  check_same_dtype(op, "key", a.key, "query", a.query);
  check_same_dtype(op, "value", a.value, "query", a.query);
  check_offsets_type(op, "cu_seqlens_q", a.cu_seqlens_q);
  check_offsets_type(op, "cu_seqlens_k", a.cu_seqlens_k);
  check_score_types(op, a.scores, a.query);
  const VarlenShape s = check_shapes(op, a.query, a.key, a.value, a.cu_seqlens_q, a.cu_seqlens_k);
  check_scores(op, a.scores, a.query, s);
  return s;
}

VarlenShape check_varlen_backward(const VarlenBackwardArgs& a) {
  constexpr const char* op = "_attention_varlen_backward";
  check_backward_types(op, a.query, a.key, a.value, a.out, a.lse, a.grad_out, a.grad_lse);
  check_offsets_type(op, "cu_seqlens_q", a.cu_seqlens_q);
  check_offsets_type(op, "cu_seqlens_k", a.cu_seqlens_k);
  check_score_types(op, a.scores, a.query);
  const VarlenShape s = check_shapes(op, a.query, a.key, a.value, a.cu_seqlens_q, a.cu_seqlens_k);
  check_backward_shapes(op, {s.query_rows, s.Hq, s.Dv}, {s.Hq, s.query_rows}, a.out, a.lse,
                        a.grad_out, a.grad_lse);
  check_scores(op, a.scores, a.query, s);
  FULGURITE_CHECK_VALUE(a.scores.sink || !a.output_mask[kVarlenSink],
                        "expected sink, whose gradient is asked for, got none");
  return s;
}

namespace {

AttentionResult varlen_meta(const VarlenArgs& args) {
  const VarlenShape s = check_varlen(args);
  const auto options = args.query.options();
  return {at::empty_symint({s.query_rows, s.Hq, s.Dv}, options),
          at::empty_symint({s.Hq, s.query_rows},
                           options.dtype(accumulate_type(args.query.scalar_type())))};
}

VarlenGradients varlen_backward_meta(const VarlenBackwardArgs& args) {
  check_varlen_backward(args);
  const auto gradient = [&](VarlenInput input, const OptionalTensor& like) {
    return fresh_gradient(args.output_mask[input], like, args.query);
  };
  return {gradient(kVarlenQuery, args.query), gradient(kVarlenKey, args.key),
          gradient(kVarlenValue, args.value), gradient(kVarlenSink, args.scores.sink)};
}

struct VarlenFunction : torch::autograd::Function<VarlenFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& query, const Tensor& key,
                               const Tensor& value, const OptionalTensor& sink,
                               const VarlenArgs& args) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [out, lse] = call(args);
    variable_list saved{saved_output(out), saved_output(lse)};
    save(ctx, args, saved);
    ctx->save_for_backward(saved);
    ctx->set_materialize_grads(false);
    return {out, lse};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined() && !grads[1].defined()) return variable_list(kInputs<VarlenArgs> + 1);
    const variable_list saved = ctx->get_saved_variables();
    const auto forward = saved_arguments<VarlenArgs>(ctx, saved, 2);
    const auto wanted = wanted_inputs(ctx, forward);
    return gradient_list(call(VarlenBackwardArgs{if_defined(grads[0]), if_defined(grads[1]),
                                                 forward.query, forward.key, forward.value,
                                                 saved[0], saved[1], forward.cu_seqlens_q,
                                                 forward.cu_seqlens_k, forward.scores, wanted}),
                         wanted);
  }
};

AttentionResult varlen_autograd(const VarlenArgs& args) {
  check_slopes_need_no_gradient("attention_varlen", args.scores.alibi_slopes);
  const variable_list results = apply<VarlenFunction>(args);
  return {results[0], results[1]};
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, Meta, m) {
  fulgurite::implement<fulgurite::varlen_meta>(m);
  fulgurite::implement<fulgurite::varlen_backward_meta>(m);
}

TORCH_LIBRARY_IMPL(fulgurite, Autograd, m) {
  fulgurite::implement<fulgurite::varlen_autograd>(m);
  m.impl("_attention_varlen_backward", torch::autograd::autogradNotImplementedFallback());
}
