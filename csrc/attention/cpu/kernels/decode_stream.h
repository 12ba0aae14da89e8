// Few rows against a block of the cache, without packing it: what is read once from memory is multiplied as it comes.
//
//   scores: kLanes keys at a time, a dot product per key and row, their lanes added through a transposition
//   values: kLanes keys at a time, added to every row's o in order of the keys
//
// Per key of width 128 and 4 rows about 120 cycles, against the 500 that float32 takes to arrive (Zen 3, 7 GB/s a core);
// packing for the micro-kernel took as long again as the arrival.
#pragma once

#include "attention/cpu/kernels/decode.h"
#include "attention/cpu/kernels/online_softmax.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// Rows up to here are streamed; more pay for packing.
inline constexpr int64_t kStreamRows = 8;

/// Keys [j0, j0 + keys) of a cache, row after row in the accumulation type, padded with zeros to ld.
template <class S>
FULGURITE_INLINE void gather(const DecodeParams& d, const Tensor4& cache, const Block& split,
                             int64_t j0, int64_t keys, int64_t width, Accumulate<S>* to,
                             int64_t ld) {
  using T = Accumulate<S>;
  if (!d.page_table)
    return pack_plain<T>(rows_of<S>(cache, split.b, split.head, j0), keys, width, to, ld);
  const int32_t* const table = d.page_table + split.b * d.pages;
  for (int64_t j = 0; j < keys;) {
    const int64_t slot = (j0 + j) % d.page;
    const int64_t run = d.page - slot < keys - j ? d.page - slot : keys - j;
    pack_plain<T>(rows_of<S>(cache, table[(j0 + j) / d.page], split.head, slot), run, width,
                  to + j * ld, ld);
    j += run;
  }
}

/// The dot products of one row with kLanes keys.
template <class T>
FULGURITE_INLINE Native<T> dots(const T* query, const T* keys, int64_t ld) {
  using V = Native<T>;
  constexpr int W = kLanes<T>;
  V sums[W] = {};
  for (int64_t d = 0; d < ld; d += W) {
    const V q = load<V>(query + d);
#pragma GCC unroll 16
    for (int j = 0; j < W; ++j) sums[j] = madd(q, load<V>(keys + j * ld + d), sums[j]);
  }
  transpose<W / 2>(sums);
#pragma GCC unroll 4
  for (int half = W / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
  return sums[0];
}

/// products[r][c] = q_r·k_c for the columns of the tile; `buffer` holds kLanes rows.
template <class S>
void stream_scores(const DecodeParams& d, const Block& split, const Tile& t,
                   const Accumulate<S>* query, int64_t ld, Accumulate<S>* buffer,
                   Accumulate<S>* products) {
  using T = Accumulate<S>;
  constexpr int64_t W = kLanes<T>;
  for (int64_t c = 0; c < t.columns; c += W) {
    const int64_t keys = t.columns - c < W ? t.columns - c : W;
    gather<S>(d, d.attention.key, split, t.j0 + c, keys, d.attention.D, buffer, ld);
    if (keys < W) __builtin_memset(buffer + keys * ld, 0, sizeof(T) * (W - keys) * ld);
    for (int64_t r = 0; r < t.rows; ++r)
      store(products + r * kScoreStride + c, dots(query + r * ld, buffer, ld));
  }
}

/// o_r += Σ_c p_rc·v_c over the columns of the tile. `kept(r, c)` is asked only where a value is not finite.
template <class S, class Kept>
void stream_values(const DecodeParams& d, const Block& split, const Tile& t, int64_t ld,
                   Accumulate<S>* buffer, const OnlineSoftmax<Accumulate<S>>& softmax,
                   const Kept& kept) {
  using T = Accumulate<S>;
  using V = Native<T>;
  constexpr int64_t W = kLanes<T>;
  for (int64_t c = 0; c < t.columns; c += W) {
    const int64_t keys = t.columns - c < W ? t.columns - c : W;
    gather<S>(d, d.attention.value, split, t.j0 + c, keys, d.attention.Dv, buffer, ld);
    const bool careful = t.state == TileState::kPartial && !all_finite(buffer, keys * ld);
    for (int64_t r = 0; r < t.rows; ++r) {
      const T* const p = softmax.scores + r * kScoreStride + c;
      T* const acc = softmax.acc + r * softmax.acc_ld;
      if (keys == W && !careful) {
        V weights[W];
#pragma GCC unroll 16
        for (int j = 0; j < W; ++j) weights[j] = splat<V>(p[j]);
        for (int64_t x = 0; x < ld; x += W) {
          V sum = load<V>(acc + x);
#pragma GCC unroll 16
          for (int j = 0; j < W; ++j) sum = madd(weights[j], load<V>(buffer + j * ld + x), sum);
          store(acc + x, sum);
        }
        continue;
      }
      for (int64_t j = 0; j < keys; ++j) {
        if (careful && !kept(r, c + j)) continue;
        for (int64_t x = 0; x < ld; x += W)
          store(acc + x, madd(splat<V>(p[j]), load<V>(buffer + j * ld + x), load<V>(acc + x)));
      }
    }
  }
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
