// What the optimizer kernels see of one call.
#pragma once

#include "simd/types.h"
#include "simd/walk.h"

namespace fulgurite {

enum AdamwOperand {
  kParam,
  kGrad,
  kExpAvg,
  kExpAvgSq,
  kMaxExpAvgSq,
  kMaster,
  kCopy,
  kEma,
  kAdamwOperands
};

/// The numbers of one tensor and step, float64; the kernel rounds each to the tensor's arithmetic.
struct AdamwScalars {
  double grad_factor;        // multiplier, negated to maximize
  double decay;              // 1 − lr·wd if decoupled, else 1
  double weight_decay;       // added to the gradient; 0 if decoupled
  double exp_avg_weight;     // 1 − β1 if that is below ½, else −β1
  double exp_avg_sq_weight;  // 1 − β2
  double beta2;
  double step_size;   // lr / (1 − β1^t)
  double correction;  // √(1 − β2^t)
  double eps;
  double ema_weight;  // 1 − ema_decay
  bool from_exp_avg;  // 1 − β1 < ½
};

struct AdamwTensor {
  void* data[kAdamwOperands];  // null: none
  Dtype dtype[kAdamwOperands];
  bool split;  // the master is the low half of a split one, int16
  AdamwScalars scalars;
};

struct AdamwParams {
  const Walk* walks;
  const int64_t* layouts;
  const AdamwTensor* tensors;
  int64_t count;
  bool amsgrad, zero_grads;
};

/// Updates the elements at positions [first, last).
using AdamwTaskFn = void(const AdamwParams&, int64_t first, int64_t last);

struct SplitParams {
  float* master;
  uint16_t* high;
  int16_t* low;
};

/// Elements [first, last), all operands dense.
using SplitTaskFn = void(const SplitParams&, int64_t first, int64_t last);

}  // namespace fulgurite
