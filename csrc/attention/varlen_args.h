// The arguments of attention_varlen and its backward, as args.h holds those of attention.
#pragma once

#include "attention/args.h"

namespace fulgurite {

using VarlenGradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

struct VarlenArgs {
  Tensor query, key, value, cu_seqlens_q, cu_seqlens_k;
  ScoreArgs scores;  // without bias, mask, layout, chunks and other scores

  using Signature = AttentionResult(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                    const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                    std::optional<double>, bool, std::string_view, int64_t, int64_t,
                                    int64_t, double, double, const OptionalTensor&);
  AttentionResult call() const {
    static const auto op = op_handle<Signature>("attention_varlen");
    const ScoreArgs& s = scores;
    return op.call(query, key, value, cu_seqlens_q, cu_seqlens_k, s.sink, s.alibi_slopes, s.scale,
                   s.causal, s.align, s.window_left, s.window_right, s.sink_tokens, s.softcap,
                   s.dropout_p, s.philox);
  }
};

/// The scores of packed sequences: every other argument as if it was not given.
inline ScoreArgs varlen_scores(const OptionalTensor& sink, const OptionalTensor& alibi_slopes,
                               std::optional<double> scale, bool causal, std::string_view align,
                               int64_t window_left, int64_t window_right, int64_t sink_tokens,
                               double softcap, double dropout_p, const OptionalTensor& philox) {
  ScoreArgs s{};
  s.sink = sink;
  s.alibi_slopes = alibi_slopes;
  s.scale = scale;
  s.causal = causal;
  s.align = align;
  s.window_left = window_left;
  s.window_right = window_right;
  s.sink_tokens = sink_tokens;
  s.softcap = softcap;
  s.score = "softmax";
  s.score_scale = 1.0;
  s.dropout_p = dropout_p;
  s.philox = philox;
  return s;
}

template <AttentionResult (*f)(const VarlenArgs&)>
AttentionResult varlen_from_schema(const Tensor& query, const Tensor& key, const Tensor& value,
                                   const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k,
                                   const OptionalTensor& sink, const OptionalTensor& alibi_slopes,
                                   std::optional<double> scale, bool causal, std::string_view align,
                                   int64_t window_left, int64_t window_right, int64_t sink_tokens,
                                   double softcap, double dropout_p, const OptionalTensor& philox) {
  return f({query, key, value, cu_seqlens_q, cu_seqlens_k,
            varlen_scores(sink, alibi_slopes, scale, causal, align, window_left, window_right,
                          sink_tokens, softcap, dropout_p, philox)});
}

enum VarlenInput { kVarlenQuery, kVarlenKey, kVarlenValue, kVarlenSink, kVarlenInputs };

struct VarlenBackwardArgs {
  OptionalTensor grad_out, grad_lse;
  Tensor query, key, value, out, lse, cu_seqlens_q, cu_seqlens_k;
  ScoreArgs scores;
  std::array<bool, kVarlenInputs> output_mask;

  using Signature = VarlenGradients(const OptionalTensor&, const OptionalTensor&, const Tensor&,
                                    const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                    const Tensor&, const Tensor&, const OptionalTensor&,
                                    const OptionalTensor&, std::optional<double>, bool,
                                    std::string_view, int64_t, int64_t, int64_t, double, double,
                                    const OptionalTensor&, std::array<bool, kVarlenInputs>);
  VarlenGradients call() const {
    static const auto op = op_handle<Signature>("_attention_varlen_backward");
    const ScoreArgs& s = scores;
    return op.call(grad_out, grad_lse, query, key, value, out, lse, cu_seqlens_q, cu_seqlens_k,
                   s.sink, s.alibi_slopes, s.scale, s.causal, s.align, s.window_left,
                   s.window_right, s.sink_tokens, s.softcap, s.dropout_p, s.philox, output_mask);
  }
};

template <VarlenGradients (*f)(const VarlenBackwardArgs&)>
VarlenGradients varlen_backward_from_schema(
    const OptionalTensor& grad_out, const OptionalTensor& grad_lse, const Tensor& query,
    const Tensor& key, const Tensor& value, const Tensor& out, const Tensor& lse,
    const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k, const OptionalTensor& sink,
    const OptionalTensor& alibi_slopes, std::optional<double> scale, bool causal,
    std::string_view align, int64_t window_left, int64_t window_right, int64_t sink_tokens,
    double softcap, double dropout_p, const OptionalTensor& philox,
    std::array<bool, kVarlenInputs> output_mask) {
  return f({grad_out, grad_lse, query, key, value, out, lse, cu_seqlens_q, cu_seqlens_k,
            varlen_scores(sink, alibi_slopes, scale, causal, align, window_left, window_right,
                          sink_tokens, softcap, dropout_p, philox),
            output_mask});
}

}  // namespace fulgurite
