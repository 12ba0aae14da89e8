// The arguments of the amp family (common/arguments.h).
#pragma once

#include "common/arguments.h"

namespace fulgurite {

struct GradStatsArgs {
  static constexpr const char* kName = "grad_stats";
  using Result = std::tuple<Tensor, Tensor, Tensor>;  // found_inf, norm_sq, first_bad
  TensorList grads;
  OptionalTensor inv_scale;
  FULGURITE_MEMBERS(grads, inv_scale)
};

struct ClipMultiplierArgs {
  static constexpr const char* kName = "clip_multiplier";
  using Result = Tensor;
  Tensor norm_sq;
  double max_norm;
  OptionalTensor inv_scale;
  double eps;
  FULGURITE_MEMBERS(norm_sq, max_norm, inv_scale, eps)
};

struct UnscaleArgs {
  static constexpr const char* kName = "unscale_";
  using Result = void;
  TensorList grads;
  Tensor found_inf, inv_scale;
  FULGURITE_MEMBERS(grads, found_inf, inv_scale)
};

struct UpdateScaleArgs {
  static constexpr const char* kName = "update_scale_";
  using Result = void;
  Tensor scale, growth_tracker, hysteresis, counters, found_inf;
  double growth_factor, backoff_factor;
  int64_t growth_interval, max_hysteresis;
  std::string_view refill;
  double min_scale;
  std::optional<double> max_scale;
  FULGURITE_MEMBERS(scale, growth_tracker, hysteresis, counters, found_inf, growth_factor,
                    backoff_factor, growth_interval, max_hysteresis, refill, min_scale, max_scale)
};

}  // namespace fulgurite
