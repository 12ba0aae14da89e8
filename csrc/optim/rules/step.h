// The arithmetic of one AdamW step, in this order and with these contractions:
//   g  = grad·factor                              factor: the multiplier, negated to maximize
//   p  = p·(1 − lr·wd)                            decoupled; else g = fma(wd, p, g)
//   m  = fma(1−β1, g − m, m)                      if 1−β1 < ½, else fma(−β1, g − m, g)
//   v  = fma((1−β2)·g, g, β2·v)                   vmax = max(vmax, v) for amsgrad
//   p −= (step_size·m) / (√v/correction + eps)
// Every operation is rounded once and none depends on the vector width, so all devices and instruction
// sets give the same bits.
#pragma once

#include "common/value.h"
#include "optim/rules/step_scalars.h"

namespace fulgurite {

/// The scalars in the arithmetic type T.
template <class T>
struct StepNumbers {
  FULGURITE_HOST_DEVICE explicit StepNumbers(const AdamwScalars& s)
      : grad_factor(static_cast<T>(s.grad_factor)),
        decay(static_cast<T>(s.decay)),
        weight_decay(static_cast<T>(s.weight_decay)),
        exp_avg_weight(static_cast<T>(s.exp_avg_weight)),
        exp_avg_sq_weight(static_cast<T>(s.exp_avg_sq_weight)),
        beta2(static_cast<T>(s.beta2)),
        step_size(static_cast<T>(s.step_size)),
        correction(static_cast<T>(s.correction)),
        eps(static_cast<T>(s.eps)),
        ema_weight(static_cast<T>(s.ema_weight)),
        from_exp_avg(s.from_exp_avg) {}
  T grad_factor, decay, weight_decay, exp_avg_weight, exp_avg_sq_weight, beta2, step_size,
      correction, eps, ema_weight;
  Integer<T> from_exp_avg;  // 0 or 1, as wide as the others: no padding that nobody writes
};

template <class V>
struct StepElement {
  V p, m, v, vmax;
};

/// decay_gradient: weight_decay is not 0. Without amsgrad vmax is not looked at.
template <class Math, class V>
FULGURITE_HOST_DEVICE StepElement<V> step_element(const StepNumbers<Number<V>>& s,
                                                  bool decay_gradient, bool amsgrad, V p, V grad,
                                                  V m, V v, V vmax) {
  V g = grad * s.grad_factor;
  if (decay_gradient)
    g = Math::fma(uniform<V>(s.weight_decay), p, g);
  else
    p = p * s.decay;
  m = Math::fma(uniform<V>(s.exp_avg_weight), g - m, s.from_exp_avg ? m : g);
  v = Math::fma(s.exp_avg_sq_weight * g, g, s.beta2 * v);
  if (amsgrad) vmax = vmax == vmax ? Math::max(vmax, v) : vmax;  // NaN in either one stays
  const V root = Math::sqrt(amsgrad ? vmax : v);
  p = p - (s.step_size * m) / (root / s.correction + s.eps);
  return {p, m, v, vmax};
}

/// ema += (1 − d)·(p − ema)
template <class V>
FULGURITE_HOST_DEVICE V averaged(const StepNumbers<Number<V>>& s, V ema, V p) {
  return ema + s.ema_weight * (p - ema);
}

}  // namespace fulgurite
