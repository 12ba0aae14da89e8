// Validation of the amp family, shared by the Meta and CPU kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

namespace fulgurite {

using at::Tensor;
using at::TensorList;
using OptionalTensor = std::optional<Tensor>;

struct UpdateScaleArgs {
  const Tensor &scale, &growth_tracker, &hysteresis, &counters, &found_inf;
  double growth_factor, backoff_factor;
  int64_t growth_interval, max_hysteresis;
  std::string_view refill;
  double min_scale;
  std::optional<double> max_scale;

  using Signature = void(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                         double, double, int64_t, int64_t, std::string_view, double,
                         std::optional<double>);
};

/// The function to register for f.
template <void (*f)(const UpdateScaleArgs&)>
void update_scale_from_schema(const Tensor& scale, const Tensor& growth_tracker,
                              const Tensor& hysteresis, const Tensor& counters,
                              const Tensor& found_inf, double growth_factor, double backoff_factor,
                              int64_t growth_interval, int64_t max_hysteresis,
                              std::string_view refill, double min_scale,
                              std::optional<double> max_scale) {
  f({scale, growth_tracker, hysteresis, counters, found_inf, growth_factor, backoff_factor,
     growth_interval, max_hysteresis, refill, min_scale, max_scale});
}

void check_grad_stats(TensorList grads, const OptionalTensor& inv_scale);
void check_clip_multiplier(const Tensor& norm_sq, double max_norm, const OptionalTensor& inv_scale,
                           double eps);
void check_unscale(TensorList grads, const Tensor& found_inf, const Tensor& inv_scale);
/// What only memory can tell: a gradient that overlaps itself cannot be written.
void check_unscale_memory(TensorList grads);
void check_update_scale(const UpdateScaleArgs& args);

}  // namespace fulgurite
