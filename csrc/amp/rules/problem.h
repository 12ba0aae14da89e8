// The calls of loss scaling on lists of gradients as every device sees them.
#pragma once

#include <cstdint>

#include "common/walk_table.h"
#include "simd/types.h"

namespace fulgurite {

struct GradTensor {
  void* data;
  Dtype dtype;
};

/// `count` gradients, and what each is multiplied with.
struct GradientsProblem {
  const Walk* walks;
  const int64_t* layouts;
  const GradTensor* grads;
  int64_t count;
  double inv_scale;
};

/// Elements that one partial sum of the statistics covers: a unit of the tree, so never to depend on the machine.
inline constexpr int64_t kStatsBlock = 4096;

}  // namespace fulgurite
