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
  static constexpr const char* kName = "_attention_double_backward";
  using Result = AttentionDoubleGradients;
  /// Incoming gradients of grad_query … grad_sink.
  std::array<OptionalTensor, kAttentionInputs> grads;
  OptionalTensor grad_out, grad_lse;
  Tensor query, key, value;
  ScoreArgs scores;
  std::array<bool, kDoubleBackwardInputs> output_mask;
  FULGURITE_MEMBERS(grads, grad_out, grad_lse, query, key, value, scores, output_mask)
  FULGURITE_INPUTS(grads[kQuery], grads[kKey], grads[kValue], grads[kBias], grads[kSink], grad_out,
                   grad_lse, query, key, value, scores.bias, scores.sink)

  /// The tensor that a result is the gradient of; none where it was not given.
  OptionalTensor input(int which) const {
    const OptionalTensor inputs[kDoubleBackwardInputs] = {grad_out, grad_lse,    query,      key,
                                                          value,    scores.bias, scores.sink};
    return inputs[which];
  }
};

/// Checked arguments to gradients, from ATen ops over tiles of query rows.
AttentionDoubleGradients attention_double_backward(const AttentionDoubleBackwardArgs& args);

}  // namespace fulgurite
