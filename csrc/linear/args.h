// The arguments of the family (common/arguments.h).
#pragma once

#include "common/arguments.h"

namespace fulgurite {

struct CausalConv1dArgs {
  static constexpr const char* kName = "causal_conv1d";
  using Result = std::tuple<Tensor, Tensor>;  // out, state
  Tensor x, weight;
  OptionalTensor bias;
  std::string_view activation;
  OptionalTensor initial_state, cu_seqlens;
  FULGURITE_MEMBERS(x, weight, bias, activation, initial_state, cu_seqlens)
  FULGURITE_INPUTS(x, weight, bias, initial_state)
};

enum CausalConv1dInput { kConvX, kConvWeight, kConvBias, kConvInitialState, kConvInputs };

struct CausalConv1dBackwardArgs {
  static constexpr const char* kName = "_causal_conv1d_backward";
  using Result = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // as the inputs
  OptionalTensor grad_out, grad_state;
  CausalConv1dArgs forward;
  std::array<bool, kConvInputs> output_mask;
  FULGURITE_MEMBERS(grad_out, grad_state, forward, output_mask)
};

}  // namespace fulgurite
