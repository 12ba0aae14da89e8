// Random features: the call, and its validation for Meta, CPU and CUDA.
#pragma once

#include "common/arguments.h"

namespace fulgurite {

struct FavorFeaturesArgs {
  static constexpr const char* kName = "favor_features";
  using Result = Tensor;  // out
  Tensor x, projection;
  bool is_query;
  double eps;
  std::string_view kind;
  OptionalTensor cu_seqlens;
  FULGURITE_MEMBERS(x, projection, is_query, eps, kind, cu_seqlens)
  FULGURITE_INPUTS(x, projection)
};

enum FavorFeaturesInput { kFavorX, kFavorProjection, kFavorInputs };

struct FavorFeaturesBackwardArgs {
  static constexpr const char* kName = "_favor_features_backward";
  using Result = std::tuple<Tensor, Tensor>;  // as the inputs
  Tensor grad_out, out;
  FavorFeaturesArgs forward;
  std::array<bool, kFavorInputs> output_mask;
  FULGURITE_MEMBERS(grad_out, out, forward, output_mask)
};

/// The shape of out, (B,H,N,M).
c10::SymDimVector check_favor_features(const FavorFeaturesArgs& args);
void check_favor_features_backward(const FavorFeaturesBackwardArgs& args);

}  // namespace fulgurite
