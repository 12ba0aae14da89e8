// Softmax over the keys of a row, tile by tile, in any number of tiles:
//
//   m' = max(m, max_J u·s)    α = exp(m − m')    p = exp(u·s − m')    l = α·l + Σ_J p
//
// u is score_unit; m starts at −inf, l at 0.
#pragma once

#include "attention/cpu/row_scores.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// Rows of one tile; max, sum and rescale hold whole vectors of rows.
template <class T>
struct OnlineSoftmax {
  T *scores, *acc, *max, *sum, *rescale;
  int64_t acc_ld;
};

template <class T>
FULGURITE_INLINE Native<T> finite_base(Native<T> max) {
  return max == static_cast<T>(-__builtin_inf()) ? Native<T>{}
                                                 : max;  // nothing kept yet: exp(−inf − 0) = 0
}

/// New maxima and the factors that bring what was summed so far to them.
template <class T>
void raise_maxima(const AttentionParams& p, const Tile& t, OnlineSoftmax<T>& w) {
  using V = Native<T>;
  const T unit = static_cast<T>(p.score_unit);
  for (int64_t r = 0; r < t.rows; ++r) {
    V m = load<V>(w.scores + r * kScoreStride + t.c0);
    for (int64_t c = t.c0 + kLanes<T>; c < t.c1; c += kLanes<T>)
      m = max(m, load<V>(w.scores + r * kScoreStride + c));
    const T row_max = unit * max_lane(m);
    w.rescale[r] = w.max[r];  // the old maximum, until the loop below
    if (row_max > w.max[r]) w.max[r] = row_max;
  }
  for (int64_t r = 0; r < t.rows; r += kLanes<T>)
    store(w.rescale + r, exp_flushed(load<V>(w.rescale + r) - finite_base<T>(load<V>(w.max + r))));
}

/// scores become p; l and o are brought to the new maximum.
template <class T>
void exponentiate(const AttentionParams& p, const Tile& t, OnlineSoftmax<T>& w) {
  using V = Native<T>;
  const V unit = splat<V>(static_cast<T>(p.score_unit));
  for (int64_t r = 0; r < t.rows; ++r) {
    T* const row = w.scores + r * kScoreStride;
    const V base = finite_base<T>(splat<V>(w.max[r]));
    V total{};
    for (int64_t c = t.c0; c < t.c1; c += kLanes<T>) {
      const V probability = exp_flushed(load<V>(row + c) * unit - base);
      total += probability;
      store(row + c, probability);
    }
    w.sum[r] = w.sum[r] * w.rescale[r] + sum(total);
    if (p.dropout.active) drop(p, t, r, row);
    if (w.rescale[r] != 1)
      for (int64_t d = 0; d < w.acc_ld; d += kLanes<T>)
        store(w.acc + r * w.acc_ld + d, load<V>(w.acc + r * w.acc_ld + d) * w.rescale[r]);
  }
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
