// What the loss-scaling kernels are told: the problem (rules/problem.h), and what statistics have besides it.
#pragma once

#include "amp/rules/problem.h"
#include "simd/walk.h"

namespace fulgurite {

/// Walks in logical order.
struct GradStatsParams : GradientsProblem {
  double* sums;  // per block
  bool* bad;     // per block: a NaN or Inf
};

/// Block `block` of tensor `tensor`, which is entry `slot` of sums and bad.
using GradStatsFn = void(const GradStatsParams&, int64_t tensor, int64_t block, int64_t slot);

/// Multiplies the elements at positions [first, last) and says whether one of them was not finite.
using UnscaleTaskFn = bool(const GradientsProblem&, int64_t first, int64_t last);

}  // namespace fulgurite
