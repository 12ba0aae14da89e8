// _attention_double_backward: gradients of what _attention_backward computes, as an operator of its own.
#pragma once

#include "attention/args.h"

namespace fulgurite {

/// Which gradients are wanted, in the order of the results; from kOfQuery on in that of AttentionInput.
enum DoubleBackwardInput {
  kOfGradOut,
  kOfGradLse,
  kOfQuery,
  kOfKey,
  kOfValue,
  kOfBias,
  kOfSink,
  kDoubleBackwardInputs
};

using AttentionDoubleGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

struct AttentionDoubleBackwardArgs {
  /// Incoming gradients of grad_query … grad_sink.
  std::array<OptionalTensor, kAttentionInputs> grads;
  OptionalTensor grad_out, grad_lse;
  Tensor query, key, value;
  ScoreArgs scores;
  std::array<bool, kDoubleBackwardInputs> output_mask;

  using Signature = AttentionDoubleGradients(
      const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
      const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const Tensor&,
      const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
      const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, int64_t,
      std::optional<double>, bool, std::string_view, int64_t, int64_t, int64_t, int64_t, double,
      std::string_view, double, double, const OptionalTensor&,
      std::array<bool, kDoubleBackwardInputs>);
  AttentionDoubleGradients call() const {
    static const auto op = op_handle<Signature>("_attention_double_backward");
    const ScoreArgs& s = scores;
    return op.call(grads[kQuery], grads[kKey], grads[kValue], grads[kBias], grads[kSink], grad_out,
                   grad_lse, query, key, value, s.bias, s.mask, s.sink, s.alibi_slopes,
                   s.block_layout, s.block_size, s.scale, s.causal, s.align, s.window_left,
                   s.window_right, s.sink_tokens, s.chunk_size, s.softcap, s.score, s.score_scale,
                   s.dropout_p, s.philox, output_mask);
  }

  /// The tensor that a result is the gradient of; none where it was not given.
  OptionalTensor input(int which) const {
    const OptionalTensor inputs[kDoubleBackwardInputs] = {grad_out, grad_lse,    query,      key,
                                                          value,    scores.bias, scores.sink};
    return inputs[which];
  }
};

template <AttentionDoubleGradients (*f)(const AttentionDoubleBackwardArgs&)>
AttentionDoubleGradients attention_double_backward_from_schema(
    const OptionalTensor& gg_query, const OptionalTensor& gg_key, const OptionalTensor& gg_value,
    const OptionalTensor& gg_bias, const OptionalTensor& gg_sink, const OptionalTensor& grad_out,
    const OptionalTensor& grad_lse, const Tensor& query, const Tensor& key, const Tensor& value,
    const OptionalTensor& bias, const OptionalTensor& mask, const OptionalTensor& sink,
    const OptionalTensor& alibi_slopes, const OptionalTensor& block_layout, int64_t block_size,
    std::optional<double> scale, bool causal, std::string_view align, int64_t window_left,
    int64_t window_right, int64_t sink_tokens, int64_t chunk_size, double softcap,
    std::string_view score, double score_scale, double dropout_p, const OptionalTensor& philox,
    std::array<bool, kDoubleBackwardInputs> output_mask) {
  return f(
      {{gg_query, gg_key, gg_value, gg_bias, gg_sink},
       grad_out,
       grad_lse,
       query,
       key,
       value,
       {bias, mask, sink, alibi_slopes, block_layout, block_size, scale, causal, align, window_left,
        window_right, sink_tokens, chunk_size, softcap, score, score_scale, dropout_p, philox},
       output_mask});
}

/// Checked arguments to gradients, from ATen ops over tiles of query rows.
AttentionDoubleGradients attention_double_backward(const AttentionDoubleBackwardArgs& args);

}  // namespace fulgurite
