// The arguments of the family (common/arguments.h).
#pragma once

#include "common/arguments.h"

namespace fulgurite {

struct RmsNormArgs {
  static constexpr const char* kName = "rms_norm";
  using Result = Tensor;  // out
  Tensor x;
  OptionalTensor weight;
  double eps, weight_shift;
  FULGURITE_MEMBERS(x, weight, eps, weight_shift)
  FULGURITE_INPUTS(x, weight)
};

/// The same call where the backward will want rstd.
struct RmsNormForwardArgs : RmsNormArgs {
  static constexpr const char* kName = "_rms_norm_forward";
  using Result = std::tuple<Tensor, Tensor>;  // out, rstd
};

enum RmsNormInput { kNormX, kNormWeight, kNormInputs };

struct RmsNormBackwardArgs {
  static constexpr const char* kName = "_rms_norm_backward";
  using Result = std::tuple<Tensor, Tensor>;  // as the inputs
  Tensor grad_out, rstd;
  RmsNormArgs forward;
  std::array<bool, kNormInputs> output_mask;
  FULGURITE_MEMBERS(grad_out, rstd, forward, output_mask)
  FULGURITE_INPUTS(grad_out, forward.x, forward.weight)
};

}  // namespace fulgurite
