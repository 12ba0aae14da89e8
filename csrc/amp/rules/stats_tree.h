// The tree that statistics of gradients are added in, float64, on every device the same: 16 lanes take every 16th number in
// order, then half of them at a time is added to the other half. So the squares of a block are added, so the blocks of a
// gradient, and so the gradients of a list.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace fulgurite {

inline constexpr int kTreeLanes = 16;

/// What a lane adds for an element; V: double, or a vector of it.
template <class V>
FULGURITE_HOST_DEVICE V scaled_square(V grad, double inv_scale) {
  const V g = grad * inv_scale;
  return g * g;
}

FULGURITE_HOST_DEVICE double sum_of_lanes(double (&lanes)[kTreeLanes]) {
  for (int half = kTreeLanes / 2; half > 0; half /= 2)
    for (int k = 0; k < half; ++k) lanes[k] += lanes[k + half];
  return lanes[0];
}

/// Of at(0), …, at(n − 1).
template <class At>
FULGURITE_HOST_DEVICE double tree_sum(int64_t n, const At& at) {
  double lanes[kTreeLanes] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i % kTreeLanes] += at(i);
  return sum_of_lanes(lanes);
}

}  // namespace fulgurite
