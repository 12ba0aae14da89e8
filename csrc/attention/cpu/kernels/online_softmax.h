// Softmax over the keys of a row, piece by piece, in any number of pieces:
//
//   m' = max(m, max_J u·s) if that exceeds m by more than kSlack, else m
//   α = exp(m − m')    p = exp(u·s − m')    l = α·l + Σ_J p
//
// u is score_unit; m starts at −inf, l at 0. Any m will do that keeps exp from overflowing, and raising it costs a pass over
// o: p may reach e^kSlack. l is kept as wide as a vector.
#pragma once

#include "attention/cpu/kernels/row_scores.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

inline constexpr double kSlack = 5.5;  // p up to 245

/// Rows of one tile or strip: a number for each in max and limit, a vector for each in sum.
template <class T>
struct OnlineSoftmax {
  T *scores, *acc, *max, *limit, *sum;
  int64_t acc_ld;

  /// Of the rows from r on.
  OnlineSoftmax rows_from(int64_t r) const {
    return {scores, acc + r * acc_ld, max + r, limit + r, sum + r * kLanes<T>, acc_ld};
  }
};

/// m of row r, and the bare score that raises it.
template <class T>
FULGURITE_INLINE void set_maximum(const AttentionParams& p, const OnlineSoftmax<T>& w, int64_t r,
                                  T max) {
  w.max[r] = max;
  w.limit[r] = (max + static_cast<T>(kSlack)) / static_cast<T>(p.score_unit);
  // The quotient's rounding must not let a score past by which exp overflows.
  constexpr T kLarge = 65536, kRounding = sizeof(T) == 4 ? T(0x1p-21) : T(0x1p-50);
  if (p.score_unit != 1 && (max > kLarge || max < -kLarge))
    w.limit[r] -= kRounding * (max > 0 ? w.limit[r] : -w.limit[r]);
}

/// Nothing summed yet but a score of `sink`, −inf for none.
template <class T>
FULGURITE_INLINE void start_row(const AttentionParams& p, const OnlineSoftmax<T>& w, int64_t r,
                                T sink) {
  set_maximum(p, w, r, sink);
  store(w.sum + r * kLanes<T>, Native<T>{sink == kHidden<T> ? T(0) : T(1)});
  if (w.acc)  // none where only the normaliser is wanted
    __builtin_memset(w.acc + r * w.acc_ld, 0, sizeof(T) * w.acc_ld);
}

/// Raises the maximum of row r if its highest score calls for it, with l and o; returns the factor that they took.
template <class V>
FULGURITE_INLINE Element<V> raise_row(const AttentionParams& p, const OnlineSoftmax<Element<V>>& w,
                                      int64_t r, V scores) {
  using T = Element<V>;
  const T highest = max_lane(scores);
  if (!(highest > w.limit[r])) return 1;
  const T before = w.max[r], next = static_cast<T>(p.score_unit) * highest;
  if (next <= before) return 1;
  set_maximum(p, w, r, next);
  if (before == kHidden<T>) return 1;  // nothing summed yet
  const T factor = exp_flushed(splat<V>(before - w.max[r]))[0];
  T *const sums = w.sum + r * kLanes<T>, *const acc = w.acc + r * w.acc_ld;
  store(sums, load<V>(sums) * factor);
  for (int64_t d = 0; d < w.acc_ld; d += kLanes<T>) store(acc + d, load<V>(acc + d) * factor);
  return factor;
}

/// New maxima for the scores of a tile, with l and o brought to them.
template <class T>
void raise_maxima(const AttentionParams& p, const Tile& t, const OnlineSoftmax<T>& w) {
  using V = Native<T>;
  for (int64_t r = 0; r < t.rows; ++r) {
    V m = splat<V>(kHidden<T>);
    for (int64_t c = t.c0; c < t.c1; c += kLanes<T>)
      m = max(load<V>(w.scores + r * kScoreStride + c), m);
    raise_row(p, w, r, m);
  }
}

/// The weights of as many vectors of scores as fill one of Out, added to the total.
template <class Out, class E, class V>
FULGURITE_INLINE void weigh_vectors(const Weigh<E>& weigh, const V* scores, Out* to, V& total) {
  V weights[kStep<Out>];
#pragma GCC unroll 2
  for (int i = 0; i < kStep<Out>; ++i) {
    weights[i] = weigh(scores[i]);
    total += weights[i];
  }
  store_operand<Out>(to, weights);
}

/// The weights of a row of scores, stored as Out, added to l.
template <class Out, class E, class T>
FULGURITE_INLINE void weigh_row(const Weigh<E>& weigh, const Tile& t, const T* scores, Out* to,
                                T* sums) {
  using V = Native<T>;
  V total = load<V>(sums);
  for (int64_t c = t.c0; c < t.c1; c += kStep<Out> * kWidth<V>) {
    V vectors[kStep<Out>];
#pragma GCC unroll 2
    for (int i = 0; i < kStep<Out>; ++i) vectors[i] = load<V>(scores + c + i * kWidth<V>);
    weigh_vectors(weigh, vectors, to + c, total);
  }
  store(sums, total);
}

/// p of the scores, as operands in `weights`, which numbers share with the scores.
template <class E, class T>
void exponentiate(const AttentionParams& p, const Tile& t, const OnlineSoftmax<T>& w, E* weights) {
  for (int64_t r = 0; r < t.rows; ++r) {
    T* const row = w.scores + r * kScoreStride;
    T* const sums = w.sum + r * kLanes<T>;
    const T base = finite_base(w.max[r]);
    const bool centred = weighs_centred<E>(base);
    if (centred) centre_row(p, t, base, row);
    const Weigh<E> weigh = centred ? Weigh<E>::of_centred() : Weigh<E>(p, base);
    if (p.dropout.active) {
      weigh_row<T>(weigh, t, row, row, sums);
      drop(p, t, r, row);
    } else {
      weigh_row<E>(weigh, t, row, weights + r * kScoreStride, sums);
    }
  }
  if (p.dropout.active) narrow_for_columns(t, w.scores, weights);
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
