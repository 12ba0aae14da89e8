// What the loss-scaling kernels see of one call.
#pragma once

#include "simd/types.h"
#include "simd/walk.h"

namespace fulgurite {

struct GradTensor {
  void* data;
  Dtype dtype;
};

/// Elements that one partial sum covers: a unit of the tree, so never to depend on the machine.
inline constexpr int64_t kStatsBlock = 4096;

struct GradStatsParams {
  const Walk* walks;  // in logical order
  const int64_t* layouts;
  const GradTensor* grads;
  double inv_scale;
  double* sums;  // per block
  bool* bad;     // per block: a NaN or Inf
};

/// Block `block` of tensor `tensor`, which is entry `slot` of sums and bad.
using GradStatsFn = void(const GradStatsParams&, int64_t tensor, int64_t block, int64_t slot);

struct UnscaleParams {
  const Walk* walks;
  const int64_t* layouts;
  const GradTensor* grads;
  int64_t count;
  double inv_scale;
};

/// Multiplies the elements at positions [first, last) and says whether one of them was not finite.
using UnscaleTaskFn = bool(const UnscaleParams&, int64_t first, int64_t last);

}  // namespace fulgurite
