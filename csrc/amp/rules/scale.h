// The loss scale and the factor of a clipped norm, the same on every device: products in float64, rounded to float32 once.
#pragma once

#include <cstdint>

#include "amp/rules/choices.h"
#include "common/host_device.h"

namespace fulgurite {

struct ScaleRule {
  double growth_factor, backoff_factor;
  int64_t growth_interval;
  int32_t max_hysteresis;
  Refill refill;
  double min_scale, max_scale;  // no maximum: infinity
};

struct ScaleState {
  float scale;
  int32_t tracker;     // clean updates since the scale changed
  int32_t hysteresis;  // skipped updates that are still tolerated
  int64_t clean, skipped, in_a_row, last_skipped;
};

/// Never grows to infinity.
FULGURITE_HOST_DEVICE float grown(float scale, const ScaleRule& rule) {
  const double product = static_cast<double>(scale) * rule.growth_factor;
  const float next = static_cast<float>(product > rule.max_scale ? rule.max_scale : product);
  return next - next == 0 ? next : scale;
}

FULGURITE_HOST_DEVICE float backed_off(float scale, const ScaleRule& rule) {
  const float next = static_cast<float>(static_cast<double>(scale) * rule.backoff_factor);
  const float floor = static_cast<float>(rule.min_scale);
  return next < floor ? floor : next;
}

FULGURITE_HOST_DEVICE bool refills(Refill refill, bool grows) {
  switch (refill) {
    case Refill::kClean: return true;
    case Refill::kGrowth: return grows;
  }
  __builtin_unreachable();
}

/// After an update whose gradients were finite, or that was skipped.
FULGURITE_HOST_DEVICE void update_scale(ScaleState& s, bool finite, const ScaleRule& rule) {
  if (!finite) {
    s.tracker = 0;
    if (s.hysteresis > INT32_MIN) --s.hysteresis;
    if (s.hysteresis <= 0) s.scale = backed_off(s.scale, rule);
    ++s.skipped;
    ++s.in_a_row;
    s.last_skipped = s.clean + s.skipped;
    return;
  }
  const bool grows = s.tracker + int64_t{1} == rule.growth_interval;
  if (grows) s.scale = grown(s.scale, rule);
  s.tracker = grows ? 0 : s.tracker + 1;
  if (refills(rule.refill, grows)) s.hysteresis = rule.max_hysteresis;
  ++s.clean;
  s.in_a_row = 0;
}

/// The gradients are multiplied with it. A NaN norm stays visible.
FULGURITE_HOST_DEVICE float clip_factor(double norm, double max_norm, double inv_scale,
                                        double eps) {
  const double ratio = max_norm / (norm + eps);
  return static_cast<float>(inv_scale * (ratio >= 1 ? 1.0 : ratio));
}

}  // namespace fulgurite
