// Loss scaling and gradient clipping, for C++ programs: docs/ops/grad_stats.md and unscale_.md.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "fulgurite/config.h"

namespace fulgurite {

/// -> found_inf (float32, 0 or 1), norm_sq (float64, of grad·inv_scale), first_bad (int64, index of
/// the first tensor with NaN or Inf).
FULGURITE_API std::tuple<at::Tensor, at::Tensor, at::Tensor> grad_stats(
    const std::vector<at::Tensor>& grads,
    const std::optional<at::Tensor>& inv_scale = std::nullopt);

/// inv_scale·min(1, max_norm/(√norm_sq + eps)), float32.
FULGURITE_API at::Tensor clip_multiplier(const at::Tensor& norm_sq, double max_norm,
                                         const std::optional<at::Tensor>& inv_scale = std::nullopt,
                                         double eps = 1e-6);

/// grads *= inv_scale; found_inf becomes 1 if any of them held a NaN or Inf.
FULGURITE_API void unscale_(const std::vector<at::Tensor>& grads, const at::Tensor& found_inf,
                            const at::Tensor& inv_scale);

struct ScaleOptions {
  double growth_factor = 2.0, backoff_factor = 0.5;
  int64_t growth_interval = 2000;
  int64_t max_hysteresis = 1;
  std::string refill = "clean";  // or "growth"
  double min_scale = 0.0;
  std::optional<double> max_scale;
};

/// One update of a dynamic loss scale. counters (4) int64: clean updates, skipped, skipped in a
/// row, number of the last skipped.
FULGURITE_API void update_scale_(const at::Tensor& scale, const at::Tensor& growth_tracker,
                                 const at::Tensor& hysteresis, const at::Tensor& counters,
                                 const at::Tensor& found_inf, const ScaleOptions& options = {});

}  // namespace fulgurite
