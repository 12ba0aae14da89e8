// The numbers of one AdamW step, float64, the same bits on every device: β^t by squaring, which pow
// does not promise, and no product that a compiler fuses with a sum.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "common/rounded.h"

namespace fulgurite {

/// A row of the operators' hyper.
struct AdamwHyper {
  double lr, beta1, beta2, eps, weight_decay, ema_decay;
};

/// The kernel rounds each to the tensor's arithmetic.
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

/// x^n
FULGURITE_HOST_DEVICE double power(double x, int64_t n) {
  double result = 1;
  for (; n > 0; n >>= 1, x = rounded_product(x, x))
    if (n & 1) result = rounded_product(result, x);
  return result;
}

/// Of the step that makes the count of steps t.
FULGURITE_HOST_DEVICE AdamwScalars step_scalars(const AdamwHyper& h, int64_t t, double multiplier,
                                                bool decoupled, bool maximize) {
  AdamwScalars s{};
  s.grad_factor = maximize ? -multiplier : multiplier;
  s.decay = decoupled ? 1 - rounded_product(h.lr, h.weight_decay) : 1;
  s.weight_decay = decoupled ? 0 : h.weight_decay;
  s.from_exp_avg = 1 - h.beta1 < 0.5;
  s.exp_avg_weight = s.from_exp_avg ? 1 - h.beta1 : -h.beta1;
  s.exp_avg_sq_weight = 1 - h.beta2;
  s.beta2 = h.beta2;
  s.step_size = h.lr / (1 - power(h.beta1, t));
  s.correction = rounded_root(1 - power(h.beta2, t));
  s.eps = h.eps;
  s.ema_weight = 1 - h.ema_decay;
  return s;
}

}  // namespace fulgurite
