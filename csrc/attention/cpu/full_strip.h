// Scores of a strip of rows, their maxima and weights without leaving the registers: for strips that keep every pair and need
// nothing but the bare products.
#pragma once

#include "attention/cpu/online_softmax.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// Tiles leave their sums in memory.
inline constexpr bool kHasRegisterStrips = !FULGURITE_TILE_PRODUCTS;

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

/// Whether weigh_full_rows serves the tile: whole panels, one chain, every pair kept, and softmax of the bare products.
template <class E>
FULGURITE_INLINE bool has_full_rows(const AttentionParams& p, const Tile& t) {
  return kHasRegisterStrips && t.state == TileState::kFull &&
         (t.c1 - t.c0) % kTileColumns<E> == 0 && p.D <= kLongestChain<E> && p.plain_scores &&
         !p.dropout.active;
}

/// Weights of MR rows against the columns of a full tile.
template <int MR, class E>
void weigh_full_rows(const AttentionParams& p, const Tile& t, MatrixA<E> query, const E* key,
                     const OnlineSoftmax<Accumulate<E>>& w, E* weights) {
  using T = Accumulate<E>;
  using V = Native<T>;
  const int64_t depth = pad_depth<E>(p.D);
  for (int64_t c = t.c0; c < t.c1; c += kTileColumns<E>) {
    V scores[MR][kTileVectors] = {};
    multiply_panel(query, Panel<E>{key + c * depth, kTileColumns<E>}, steps<E>(p.D), scores);
    // max(new, old) passes over a NaN: one row's does not hide another's excess.
    V highest[MR], excess = splat<V>(kHidden<T>);
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
      highest[r] = splat<V>(kHidden<T>);
#pragma GCC unroll 4
      for (int j = 0; j < kTileVectors; ++j) highest[r] = max(scores[r][j], highest[r]);
      excess = max(highest[r] - w.limit[r], excess);
    }
    if (max_lane(excess) > 0) {
      V passed[MR];  // a copy, so that the maxima stay in registers otherwise
      for (int r = 0; r < MR; ++r) passed[r] = highest[r];
      raise_rows<MR>(p, passed, t.c0, c, w, weights);
    }
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
      const Weigh<E> weigh(p, finite_base(w.max[r]));
      T* const sums = w.sum + r * kLanes<T>;
      V total = load<V>(sums);
#pragma GCC unroll 4
      for (int j = 0; j < kTileVectors; j += kStep<E>)
        weigh_vectors(weigh, &scores[r][j], weights + r * kScoreStride + c + j * kLanes<T>, total);
      store(sums, total);
    }
  }
}

/// Weights of a strip that has_full_rows.
template <class E>
FULGURITE_INLINE void weigh_full_strip(const AttentionParams& p, const Tile& t, const E* query,
                                       int64_t ld, const E* key,
                                       const OnlineSoftmax<Accumulate<E>>& w, E* weights) {
  if constexpr (kHasRegisterStrips)
    for_strips(t.rows, [&](auto rows, int64_t r) {
      weigh_full_rows<decltype(rows)::value, E>(p, t, {query + r * ld, ld, kStep<E>}, key,
                                                w.rows_from(r), weights + r * kScoreStride);
    });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
