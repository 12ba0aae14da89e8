// The arguments of each operator as one struct, so that the long lists of the schemas stand in C++ once: here.
// X_from_schema<f> is the function to register: it gathers the arguments and calls f(args).
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

#include "common/op_handle.h"

namespace fulgurite {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using AttentionResult = std::tuple<Tensor, Tensor>;
using AttentionGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

/// What turns products into scores and weights: the keyword arguments of attention.
struct ScoreArgs {
  OptionalTensor bias, mask, sink, alibi_slopes, block_layout;
  int64_t block_size;
  std::optional<double> scale;
  bool causal;
  std::string_view align;
  int64_t window_left, window_right, sink_tokens, chunk_size;
  double softcap;
  std::string_view score;
  double score_scale, dropout_p;
  OptionalTensor philox;
};

struct AttentionArgs {
  Tensor query, key, value;
  ScoreArgs scores;

  using Signature = AttentionResult(const Tensor&, const Tensor&, const Tensor&,
                                    const OptionalTensor&, const OptionalTensor&,
                                    const OptionalTensor&, const OptionalTensor&,
                                    const OptionalTensor&, int64_t, std::optional<double>, bool,
                                    std::string_view, int64_t, int64_t, int64_t, int64_t, double,
                                    std::string_view, double, double, const OptionalTensor&);
  /// Calls the operator through the dispatcher.
  AttentionResult call() const {
    static const auto op = op_handle<Signature>("attention");
    const ScoreArgs& s = scores;
    return op.call(query, key, value, s.bias, s.mask, s.sink, s.alibi_slopes, s.block_layout,
                   s.block_size, s.scale, s.causal, s.align, s.window_left, s.window_right,
                   s.sink_tokens, s.chunk_size, s.softcap, s.score, s.score_scale, s.dropout_p,
                   s.philox);
  }
};

template <AttentionResult (*f)(const AttentionArgs&)>
AttentionResult attention_from_schema(
    const Tensor& query, const Tensor& key, const Tensor& value, const OptionalTensor& bias,
    const OptionalTensor& mask, const OptionalTensor& sink, const OptionalTensor& alibi_slopes,
    const OptionalTensor& block_layout, int64_t block_size, std::optional<double> scale,
    bool causal, std::string_view align, int64_t window_left, int64_t window_right,
    int64_t sink_tokens, int64_t chunk_size, double softcap, std::string_view score,
    double score_scale, double dropout_p, const OptionalTensor& philox) {
  return f(
      {query,
       key,
       value,
       {bias, mask, sink, alibi_slopes, block_layout, block_size, scale, causal, align, window_left,
        window_right, sink_tokens, chunk_size, softcap, score, score_scale, dropout_p, philox}});
}

/// Which gradients are wanted, in the order of the results.
enum AttentionInput { kQuery, kKey, kValue, kBias, kSink, kAttentionInputs };

struct AttentionBackwardArgs {
  OptionalTensor grad_out, grad_lse;
  Tensor query, key, value, out, lse;
  ScoreArgs scores;
  std::array<bool, kAttentionInputs> output_mask;

  using Signature = AttentionGradients(const OptionalTensor&, const OptionalTensor&, const Tensor&,
                                       const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                       const OptionalTensor&, const OptionalTensor&,
                                       const OptionalTensor&, const OptionalTensor&,
                                       const OptionalTensor&, int64_t, std::optional<double>, bool,
                                       std::string_view, int64_t, int64_t, int64_t, int64_t, double,
                                       std::string_view, double, double, const OptionalTensor&,
                                       std::array<bool, kAttentionInputs>);
  AttentionGradients call() const {
    static const auto op = op_handle<Signature>("_attention_backward");
    const ScoreArgs& s = scores;
    return op.call(grad_out, grad_lse, query, key, value, out, lse, s.bias, s.mask, s.sink,
                   s.alibi_slopes, s.block_layout, s.block_size, s.scale, s.causal, s.align,
                   s.window_left, s.window_right, s.sink_tokens, s.chunk_size, s.softcap, s.score,
                   s.score_scale, s.dropout_p, s.philox, output_mask);
  }
};

template <AttentionGradients (*f)(const AttentionBackwardArgs&)>
AttentionGradients attention_backward_from_schema(
    const OptionalTensor& grad_out, const OptionalTensor& grad_lse, const Tensor& query,
    const Tensor& key, const Tensor& value, const Tensor& out, const Tensor& lse,
    const OptionalTensor& bias, const OptionalTensor& mask, const OptionalTensor& sink,
    const OptionalTensor& alibi_slopes, const OptionalTensor& block_layout, int64_t block_size,
    std::optional<double> scale, bool causal, std::string_view align, int64_t window_left,
    int64_t window_right, int64_t sink_tokens, int64_t chunk_size, double softcap,
    std::string_view score, double score_scale, double dropout_p, const OptionalTensor& philox,
    std::array<bool, kAttentionInputs> output_mask) {
  return f(
      {grad_out,
       grad_lse,
       query,
       key,
       value,
       out,
       lse,
       {bias, mask, sink, alibi_slopes, block_layout, block_size, scale, causal, align, window_left,
        window_right, sink_tokens, chunk_size, softcap, score, score_scale, dropout_p, philox},
       output_mask});
}

using RopeSignature = Tensor(const Tensor&, const Tensor&, const Tensor&, bool, bool);

inline Tensor call_rope(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved,
                        bool conjugate) {
  static const auto op = op_handle<RopeSignature>("rope");
  return op.call(x, cos, sin, interleaved, conjugate);
}

}  // namespace fulgurite
