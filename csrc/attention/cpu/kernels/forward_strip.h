// The forward's strips in registers: scores, their maxima, and weights.
#pragma once

#include "attention/cpu/kernels/online_softmax.h"
#include "attention/cpu/kernels/register_strip.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// Raises the maxima of the rows that need it, and brings their weights before column c to them.
template <int MR, class E, class V>
__attribute__((noinline, cold)) void raise_rows(const AttentionParams& p, const V* highest,
                                                int64_t c0, int64_t c,
                                                const OnlineSoftmax<Element<V>>& w, E* weights) {
  using T = Element<V>;
  for (int64_t r = 0; r < MR; ++r) {
    const T factor = raise_row(p, w, r, highest[r]);
    if (factor == 1) continue;
    E* const row = weights + r * kScoreStride;
    for (int64_t x = c0; x < c; x += kLanes<T>) store_as(row + x, load_as<V>(row + x) * factor);
  }
}

/// Weights of MR rows against NV vectors of columns from c on, the start of a panel.
template <int MR, int NV, class E, class Scores>
FULGURITE_INLINE void weigh_columns(const AttentionParams& p, const Tile& t, MatrixA<E> query,
                                    const E* key, int64_t c, const Scores& scores_of,
                                    const OnlineSoftmax<Accumulate<E>>& w, E* weights) {
  using T = Accumulate<E>;
  using V = Native<T>;
  V scores[MR][NV] = {};
  multiply_columns(t, scores_of, query, key, p.D, c, scores);
  // max(new, old) passes over a NaN: one row's does not hide another's excess.
  V highest[MR], excess = splat<V>(kHidden<T>);
#pragma GCC unroll 6
  for (int r = 0; r < MR; ++r) {
    highest[r] = splat<V>(kHidden<T>);
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      scores[r][j] = scores_of(r, c + j * kLanes<T>, scores[r][j]);
      highest[r] = max(scores[r][j], highest[r]);
    }
    excess = max(highest[r] - w.limit[r], excess);
  }
  if (max_lane(excess) > 0) {
    V passed[MR];  // a copy, so that the maxima stay in registers otherwise
    for (int r = 0; r < MR; ++r) passed[r] = highest[r];
    raise_rows<MR>(p, passed, t.c0, c, w, weights);
  }
#pragma GCC unroll 6
  for (int r = 0; r < MR; ++r) {
    const T base = finite_base(w.max[r]);
    Weigh<E> weigh(p, base);
    if (weighs_centred<E>(base)) [[unlikely]] {
      const T unit = static_cast<T>(p.score_unit);
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) scores[r][j] = scores[r][j] * unit - base;
      weigh = Weigh<E>::of_centred();
    }
    T* const sums = w.sum + r * kLanes<T>;
    V total = load<V>(sums);
#pragma GCC unroll 4
    for (int j = 0; j < NV; j += kStep<E>) {
      E* const to = weights + r * kScoreStride + c + j * kLanes<T>;
      if (j + kStep<E> <= NV) {
        weigh_vectors(weigh, &scores[r][j], to, total);
      } else {  // the last vector of an odd number beside one of hidden columns
        const V pair[2] = {scores[r][j], splat<V>(kHidden<T>)};
        weigh_vectors(weigh, pair, to, total);
      }
    }
    store(sums, total);
  }
}

/// Weights of MR rows of a strip. A function of its own, else g++ 12 spills the products' sums.
template <int MR, class E, class Scores>
__attribute__((noinline)) void weigh_rows(const AttentionParams& p, const Tile& t, MatrixA<E> query,
                                          const E* key, const Scores& scores,
                                          const OnlineSoftmax<Accumulate<E>>& w, E* weights) {
  for_panels<E>(t, scores, [&](auto vectors, int64_t c) {
    weigh_columns<MR, decltype(vectors)::value, E>(p, t, query, key, c, scores, w, weights);
  });
}

/// Weights of a strip.
template <class E, class Scores>
FULGURITE_INLINE void weigh_in_registers(const AttentionParams& p, const Tile& t, const E* query,
                                         int64_t ld, const E* key, const Scores& scores,
                                         const OnlineSoftmax<Accumulate<E>>& w, E* weights) {
  for_strips(t.rows, [&](auto rows, int64_t r) {
    weigh_rows<decltype(rows)::value, E>(p, t, {query + r * ld, ld, kStep<E>}, key,
                                         scores.rows_from(r), w.rows_from(r),
                                         weights + r * kScoreStride);
  });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
