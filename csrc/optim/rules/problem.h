// The calls of the optimizer as every device sees them.
#pragma once

#include <cstdint>

#include "common/walk_table.h"
#include "optim/rules/dynamic_map.h"
#include "optim/rules/operands.h"
#include "optim/rules/rounding.h"
#include "optim/rules/step_scalars.h"
#include "simd/types.h"

namespace fulgurite {

/// Elements that are worked on together, and that share a scale of 8-bit states.
inline constexpr int64_t kBlock = 256;

struct AdamwTensor {
  void* data[kAdamwOperands];  // null: none
  Dtype dtype[kAdamwOperands];
  uint8_t bytes[kAdamwOperands];  // of an element
  bool split;                     // the master is the low half of a split one, int16
  bool stochastic;                // the parameter is rounded by words of this key
  uint32_t key;
  int32_t scalars;  // index of its numbers
};

struct AdamwProblem {
  const Walk* walks;
  const int64_t* layouts;
  const AdamwTensor* tensors;
  const AdamwScalars* scalars;
  int64_t count;
  RoundingSeed seed;
  bool zero_grads;
};

/// Scales of a tensor's 8-bit states, one for each block of its elements in the order of the walk.
struct BlockScales {
  float *exp_avg, *exp_avg_sq;
  int64_t exp_avg_stride, exp_avg_sq_stride;
};

struct Adamw8bitProblem {
  AdamwProblem step;          // kExpAvg and kExpAvgSq are codes
  const BlockScales* scales;  // by tensor
  const DynamicMap *exp_avg_map, *exp_avg_sq_map;
};

/// All operands dense.
struct SplitProblem {
  float* master;
  uint16_t* high;
  int16_t* low;
};

}  // namespace fulgurite
