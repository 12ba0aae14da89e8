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

struct SelectiveScanArgs {
  static constexpr const char* kName = "selective_scan";
  using Result = std::tuple<Tensor, Tensor>;  // out, state
  Tensor u, delta, A, B, C;
  OptionalTensor D, z, delta_bias;
  bool delta_softplus;
  OptionalTensor initial_state, cu_seqlens;
  FULGURITE_MEMBERS(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, cu_seqlens)
  FULGURITE_INPUTS(u, delta, A, B, C, D, z, delta_bias, initial_state)
};

/// The same call where the backward will want the states before every kKeptEvery positions.
struct SelectiveScanForwardArgs : SelectiveScanArgs {
  static constexpr const char* kName = "_selective_scan_forward";
  using Result = std::tuple<Tensor, Tensor, Tensor>;  // out, state, kept
};

enum SelectiveScanInput {
  kScanU,
  kScanDelta,
  kScanA,
  kScanB,
  kScanC,
  kScanD,
  kScanZ,
  kScanDeltaBias,
  kScanInitialState,
  kScanInputs
};

struct SelectiveScanBackwardArgs {
  static constexpr const char* kName = "_selective_scan_backward";
  using Result = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
  OptionalTensor grad_out, grad_state;
  Tensor kept;
  SelectiveScanArgs forward;
  std::array<bool, kScanInputs> output_mask;
  FULGURITE_MEMBERS(grad_out, grad_state, kept, forward, output_mask)
};

}  // namespace fulgurite
