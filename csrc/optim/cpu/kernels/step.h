// Blocks of elements through the arithmetic of one AdamW step (rules/step.h).
#pragma once

#include "optim/cpu/kernels/params.h"
#include "optim/rules/step.h"
#include "simd/convert.h"
#include "simd/rule_math.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// A block's operands in the arithmetic type.
template <class T>
struct Block {
  T *p, *m, *v, *vmax, *ema;
  const T* g;
};

template <bool kDecayGradient, bool kAmsgrad, class T>
void update_block(StepNumbers<T> s, Block<T> b,
                  int64_t n) {  // by value: nothing written aliases them
  using V = Native<T>;
  constexpr int W = kLanes<T>;
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    const auto r = step_element<VectorMath>(s, kDecayGradient, kAmsgrad, load<V>(b.p + i),
                                            load<V>(b.g + i), load<V>(b.m + i), load<V>(b.v + i),
                                            kAmsgrad ? load<V>(b.vmax + i) : V{});
    store(b.p + i, r.p);
    store(b.m + i, r.m);
    store(b.v + i, r.v);
    if constexpr (kAmsgrad) store(b.vmax + i, r.vmax);
  }
  if (const int64_t rest = n - i; rest > 0) {
    const auto r = step_element<VectorMath>(
        s, kDecayGradient, kAmsgrad, load_first<V>(b.p + i, rest), load_first<V>(b.g + i, rest),
        load_first<V>(b.m + i, rest), load_first<V>(b.v + i, rest),
        kAmsgrad ? load_first<V>(b.vmax + i, rest) : V{});
    store_first(b.p + i, r.p, rest);
    store_first(b.m + i, r.m, rest);
    store_first(b.v + i, r.v, rest);
    if constexpr (kAmsgrad) store_first(b.vmax + i, r.vmax, rest);
  }
}

template <class T>
void update_block(const StepNumbers<T>& s, const Block<T>& b, int64_t n) {
  const bool decay_gradient = s.weight_decay != 0;
  if (decay_gradient && b.vmax) return update_block<true, true>(s, b, n);
  if (decay_gradient) return update_block<true, false>(s, b, n);
  if (b.vmax) return update_block<false, true>(s, b, n);
  update_block<false, false>(s, b, n);
}

template <class T>
void update_ema(const StepNumbers<T>& s, const Block<T>& b, int64_t n) {
  for (int64_t i = 0; i < n; ++i) b.ema[i] = averaged(s, b.ema[i], b.p[i]);
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
