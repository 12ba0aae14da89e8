#include "amp/check.h"

#include <cmath>

#include "amp/rules/choices.h"
#include "common/check_choice.h"
#include "common/walk.h"

namespace fulgurite {
namespace {

const RegisteredChoice scale_choices[] = {{"update_scale_.refill", kRefills}};

void check_dtype(const char* op, const char* name, const Tensor& tensor, at::ScalarType dtype) {
  FULGURITE_CHECK_TYPE(tensor.scalar_type() == dtype, "expected ", name, " of dtype ", dtype,
                       ", got ", tensor.scalar_type());
}

void check_one_element(const char* op, const char* name, const Tensor& tensor,
                       const Tensor& first) {
  check_place(op, name, tensor, first);
  FULGURITE_CHECK(tensor.sym_numel() == 1, "expected ", name, " of one element, got shape ",
                  tensor.sym_sizes());
}

void check_grad_types(const char* op, TensorList grads) {
  for (size_t i = 0; i < grads.size(); ++i)
    FULGURITE_CHECK_TYPE(is_served_float(grads[i].scalar_type()), "expected grads[", i,
                         "] of dtype float64, float32, bfloat16 or float16, got ",
                         grads[i].scalar_type());
}

void check_grad_places(const char* op, TensorList grads, const Tensor& first) {
  for (size_t i = 0; i < grads.size(); ++i)
    FULGURITE_CHECK(grads[i].device() == first.device(), "expected grads[", i, "] on device ",
                    first.device(), ", got ", grads[i].device());
}

}  // namespace

void check_grad_stats(const GradStatsArgs& args) {
  constexpr const char* op = "grad_stats";
  const auto& [grads, inv_scale] = args;
  check_grad_types(op, grads);
  if (inv_scale) check_dtype(op, "inv_scale", *inv_scale, at::kFloat);
  if (!grads.empty()) check_grad_places(op, grads, grads[0]);
  if (inv_scale)
    check_one_element(op, "inv_scale", *inv_scale, grads.empty() ? *inv_scale : grads[0]);
}

void check_clip_multiplier(const ClipMultiplierArgs& args) {
  constexpr const char* op = "clip_multiplier";
  const auto& [norm_sq, max_norm, inv_scale, eps] = args;
  check_dtype(op, "norm_sq", norm_sq, at::kDouble);
  if (inv_scale) check_dtype(op, "inv_scale", *inv_scale, at::kFloat);
  check_one_element(op, "norm_sq", norm_sq, norm_sq);
  if (inv_scale) check_one_element(op, "inv_scale", *inv_scale, norm_sq);
  FULGURITE_CHECK_VALUE(max_norm >= 0, "expected max_norm >= 0, got ", max_norm);
  check_not_negative(op, "eps", eps);
}

void check_unscale(const UnscaleArgs& args) {
  constexpr const char* op = "unscale_";
  const auto& [grads, found_inf, inv_scale] = args;
  check_grad_types(op, grads);
  check_dtype(op, "found_inf", found_inf, at::kFloat);
  check_dtype(op, "inv_scale", inv_scale, at::kFloat);
  check_grad_places(op, grads, found_inf);
  check_one_element(op, "found_inf", found_inf, found_inf);
  check_one_element(op, "inv_scale", inv_scale, found_inf);
}

void check_unscale_memory(TensorList grads) {
  constexpr const char* op = "unscale_";
  for (size_t i = 0; i < grads.size(); ++i)
    FULGURITE_CHECK(!overlaps_itself(grads[i]), "expected grads[", i,
                    "] without overlapping memory, got strides ", grads[i].strides(),
                    " with shape ", grads[i].sizes());
}

void check_update_scale(const UpdateScaleArgs& a) {
  constexpr const char* op = "update_scale_";
  check_dtype(op, "scale", a.scale, at::kFloat);
  check_dtype(op, "growth_tracker", a.growth_tracker, at::kInt);
  check_dtype(op, "hysteresis", a.hysteresis, at::kInt);
  check_dtype(op, "counters", a.counters, at::kLong);
  check_dtype(op, "found_inf", a.found_inf, at::kFloat);
  check_one_element(op, "scale", a.scale, a.scale);
  check_one_element(op, "growth_tracker", a.growth_tracker, a.scale);
  check_one_element(op, "hysteresis", a.hysteresis, a.scale);
  check_place(op, "counters", a.counters, a.scale);
  FULGURITE_CHECK(a.counters.dim() == 1 && a.counters.sym_size(0) == 4,
                  "expected counters of shape [4], got ", a.counters.sym_sizes());
  check_one_element(op, "found_inf", a.found_inf, a.scale);
  FULGURITE_CHECK_VALUE(a.growth_factor > 0 && std::isfinite(a.growth_factor),
                        "expected a finite growth_factor > 0, got ", a.growth_factor);
  FULGURITE_CHECK_VALUE(a.backoff_factor > 0 && std::isfinite(a.backoff_factor),
                        "expected a finite backoff_factor > 0, got ", a.backoff_factor);
  FULGURITE_CHECK_VALUE(a.growth_interval >= 1, "expected growth_interval >= 1, got ",
                        a.growth_interval);
  FULGURITE_CHECK_VALUE(a.max_hysteresis >= 1 && a.max_hysteresis <= INT32_MAX,
                        "expected max_hysteresis in [1, 2^31), got ", a.max_hysteresis);
  check_choice(op, "refill", kRefills, a.refill);
  check_not_negative(op, "min_scale", a.min_scale);
  FULGURITE_CHECK_VALUE(!a.max_scale || *a.max_scale >= a.min_scale,
                        "expected max_scale >= min_scale, got ", a.max_scale.value_or(0));
}

}  // namespace fulgurite
