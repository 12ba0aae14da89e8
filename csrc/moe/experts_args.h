// The arguments of the experts and of the grouped product (common/arguments.h).
#pragma once

#include "moe/args.h"

namespace fulgurite {

struct ExpertsArgs {
  static constexpr const char* kName = "moe_experts";
  using Result = Tensor;
  Tensor x, ids, weights, w_in, w_out;
  OptionalTensor b_in, b_out;
  std::string_view activation;
  bool gated, interleaved, transposed;
  double alpha, limit;
  bool save_hidden;
  FULGURITE_MEMBERS(x, ids, weights, w_in, w_out, b_in, b_out, activation, gated, interleaved,
                    transposed, alpha, limit, save_hidden)
  FULGURITE_INPUTS(x, weights, w_in, w_out, b_in, b_out)
};

/// The same call where the backward will want the hidden layer of the sorted assignments.
struct ExpertsForwardArgs : ExpertsArgs {
  static constexpr const char* kName = "_moe_experts_forward";
  using Result = std::tuple<Tensor, Tensor>;  // y, hidden
  FULGURITE_MEMBERS(x, ids, weights, w_in, w_out, b_in, b_out, activation, gated, interleaved,
                    transposed, alpha, limit)
};

/// x, weights, w_in, w_out, b_in, b_out
using ExpertsGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

struct ExpertsBackwardArgs {
  static constexpr const char* kName = "_moe_experts_backward";
  using Result = ExpertsGradients;
  Tensor grad;
  ExpertsArgs forward;    // but for save_hidden
  OptionalTensor hidden;  // none: computed again
  std::array<bool, 6> output_mask;
  FULGURITE_MEMBERS(grad, forward.x, forward.ids, forward.weights, forward.w_in, forward.w_out,
                    hidden, forward.b_in, forward.b_out, forward.activation, forward.gated,
                    forward.interleaved, forward.transposed, forward.alpha, forward.limit,
                    output_mask)
};

// ---- grouped products

struct GroupedMmArgs {
  static constexpr const char* kName = "moe_grouped_mm";
  using Result = Tensor;
  Tensor x, weight, offsets;
  OptionalTensor bias;
  bool transposed;
  FULGURITE_MEMBERS(x, weight, offsets, bias, transposed)
  FULGURITE_INPUTS(x, weight, bias)
};

using GroupedMmGradients = std::tuple<Tensor, Tensor, Tensor>;  // x, weight, bias

struct GroupedMmBackwardArgs {
  static constexpr const char* kName = "_moe_grouped_mm_backward";
  using Result = GroupedMmGradients;
  Tensor grad, x, weight, offsets;
  bool transposed;
  std::array<bool, 3> output_mask;
  FULGURITE_MEMBERS(grad, x, weight, offsets, transposed, output_mask)
};

}  // namespace fulgurite
