// The arithmetic of one AdamW step, in this order and with these contractions:
//   g  = grad·factor                              factor: the multiplier, negated to maximize
//   p  = p·(1 − lr·wd)                            decoupled; else g = fma(wd, p, g)
//   m  = fma(1−β1, g − m, m)                      if 1−β1 < ½, else fma(−β1, g − m, g)
//   v  = fma((1−β2)·g, g, β2·v)                   vmax = max(vmax, v) for amsgrad
//   p −= (step_size·m) / (√v/correction + eps)
// Every operation is rounded once and none depends on the vector width, so all instruction sets
// give the same bits.
#pragma once

#include "optim/cpu/kernels/params.h"
#include "simd/convert.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// The scalars in the arithmetic type T.
template <class T>
struct Scalars {
  explicit Scalars(const AdamwScalars& s)
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
  bool from_exp_avg;
};

template <class V>
struct Element4 {
  V p, m, v, vmax;
};

template <bool kDecayGradient, bool kAmsgrad, class T, class V = Native<T>>
FULGURITE_INLINE Element4<V> update(const Scalars<T>& s, V p, V grad, V m, V v, V vmax) {
  V g = grad * s.grad_factor;
  if constexpr (kDecayGradient)
    g = fma(splat<V>(s.weight_decay), p, g);
  else
    p = p * s.decay;
  m = fma(splat<V>(s.exp_avg_weight), g - m, s.from_exp_avg ? m : g);
  v = fma(s.exp_avg_sq_weight * g, g, s.beta2 * v);
  if constexpr (kAmsgrad) vmax = vmax == vmax ? max(vmax, v) : vmax;  // NaN in either one stays
  const V root = sqrt(kAmsgrad ? vmax : v);
  p = p - (s.step_size * m) / (root / s.correction + s.eps);
  return {p, m, v, vmax};
}

/// A block's operands in the arithmetic type.
template <class T>
struct Block {
  T *p, *m, *v, *vmax, *ema;
  const T* g;
};

template <bool kDecayGradient, bool kAmsgrad, class T>
void update_block(Scalars<T> s, Block<T> b, int64_t n) {  // by value: nothing written aliases them
  using V = Native<T>;
  constexpr int W = kLanes<T>;
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    const auto r =
        update<kDecayGradient, kAmsgrad>(s, load<V>(b.p + i), load<V>(b.g + i), load<V>(b.m + i),
                                         load<V>(b.v + i), kAmsgrad ? load<V>(b.vmax + i) : V{});
    store(b.p + i, r.p);
    store(b.m + i, r.m);
    store(b.v + i, r.v);
    if constexpr (kAmsgrad) store(b.vmax + i, r.vmax);
  }
  if (const int64_t rest = n - i; rest > 0) {
    const auto r = update<kDecayGradient, kAmsgrad>(
        s, load_first<V>(b.p + i, rest), load_first<V>(b.g + i, rest), load_first<V>(b.m + i, rest),
        load_first<V>(b.v + i, rest), kAmsgrad ? load_first<V>(b.vmax + i, rest) : V{});
    store_first(b.p + i, r.p, rest);
    store_first(b.m + i, r.m, rest);
    store_first(b.v + i, r.v, rest);
    if constexpr (kAmsgrad) store_first(b.vmax + i, r.vmax, rest);
  }
}

template <class T>
void update_block(const Scalars<T>& s, const Block<T>& b, int64_t n) {
  const bool decay_gradient = s.weight_decay != 0;
  if (decay_gradient && b.vmax) return update_block<true, true>(s, b, n);
  if (decay_gradient) return update_block<true, false>(s, b, n);
  if (b.vmax) return update_block<false, true>(s, b, n);
  update_block<false, false>(s, b, n);
}

/// ema += (1 − d)·(p − ema)
template <class T>
void update_ema(const Scalars<T>& s, const Block<T>& b, int64_t n) {
  for (int64_t i = 0; i < n; ++i) b.ema[i] = b.ema[i] + s.ema_weight * (b.p[i] - b.ema[i]);
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
