// From products to scores, row by row of a tile: scale, softcap, bias, slopes, what is hidden; and dropout.
#pragma once

#include "attention/cpu/kernels/products.h"
#include "simd/math.h"
#include "simd/philox.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

template <class T>
FULGURITE_INLINE void hide_out_of_reach(const KeyReach& reach, const Tile& t, T* scores) {
  if (reach.sinks.meets(t.j0 + t.c0, t.j0 + t.c1)) {
    for (int64_t c = t.c0; c < t.c1; ++c)
      if (!reach.has(t.j0 + c)) scores[c] = kHidden<T>;
    return;
  }
  const int64_t begin = reach.window.begin - t.j0, end = reach.window.end - t.j0;
  for (int64_t c = t.c0; c < t.c1 && c < begin; ++c) scores[c] = kHidden<T>;
  for (int64_t c = end > t.c0 ? end : t.c0; c < t.c1; ++c) scores[c] = kHidden<T>;
}

/// kHidden at the pairs of row r that are not kept by position, layout and mask, and at the columns that fill the last two
/// vectors, which are narrowed together.
template <class T>
inline void hide(const ScoreRule& rule, const Tile& t, int64_t r, T* scores) {
  const int64_t padded = ceil_div(t.c1, 2 * kLanes<T>) * 2 * kLanes<T>, i = t.i0 + r;
  for (int64_t c = t.c1; c < padded; ++c) scores[c] = kHidden<T>;
  if (t.state == TileState::kFull) return;
  if (!t.all_in_reach) hide_out_of_reach(rule.reach(i), t, scores);
  if (rule.layout.data)
    for (int64_t c = t.c0; c < t.c1; ++c)
      if (!rule.in_layout(t.b, t.h, i, t.j0 + c)) scores[c] = kHidden<T>;
  if (rule.mask.data) {
    const bool* const mask =
        static_cast<const bool*>(rule.mask.data) + rule.mask.offset(t.b, t.h, i, t.j0);
    for (int64_t c = t.c0; c < t.c1; ++c)
      if (!mask[c * rule.mask.strides[3]]) scores[c] = kHidden<T>;
  }
}

/// scores −= slope·|i' − j|
template <class T>
inline void add_alibi(const AttentionParams& p, const ScoreRule& rule, const Tile& t, int64_t r,
                      T* scores) {
  const T slope = static_cast<const T*>(p.alibi_slopes)[t.b * p.alibi_batch_stride + t.h];
  const int64_t center = t.i0 + r + rule.shift - t.j0;
  for (int64_t c = t.c0; c < t.c1; ++c)
    scores[c] -= slope * static_cast<T>(c < center ? center - c : c - center);
}

/// s becomes scale·s, softcapped; slope ≠ null receives the derivative of the softcap, 1 − tanh².
template <class T>
inline void scale_row(const AttentionParams& p, const Tile& t, T* scores, T* slope) {
  using V = Native<T>;
  const T scale = static_cast<T>(p.scale), cap = static_cast<T>(p.softcap);
  for (int64_t c = t.c0; c < t.c1; c += kLanes<T>) {
    V s = load<V>(scores + c) * scale;
    if (cap > 0) {
      const V u = tanh(s / cap);
      if (slope) store(slope + c, 1 - u * u);
      s = cap * u;
    }
    store(scores + c, s);
  }
}

/// Calls put(c, vector) for the bias of row r of the tile; lanes past its columns are zero.
template <class T, class Put>
FULGURITE_INLINE void load_bias(const ScoreRule& rule, const Tile& t, int64_t r, const Put& put) {
  with_storage_beside<T>(rule.bias_dtype, [&](auto storage) {
    using S = decltype(storage);
    const int64_t stride = rule.bias.strides[3];
    const S* const bias =
        static_cast<const S*>(rule.bias.data) + rule.bias.offset(t.b, t.h, t.i0 + r, t.j0);
    for (int64_t c = t.c0; c < t.c1; c += kLanes<T>)
      put(c, load_strided<Native<T>>(bias + c * stride, stride, t.c1 - c));
  });
}

/// scores += bias, or bias − slope·|i' − j|, in the order of the strips in registers: a large bias makes it show in the bits.
template <class T>
inline void add_bias(const AttentionParams& p, const ScoreRule& rule, const Tile& t, int64_t r,
                     T* scores) {
  using V = Native<T>;
  const auto add_to = [scores](int64_t c, V add) {
    store(scores + c, select(add == kHidden<T>, add, load<V>(scores + c) + add));
  };
  if (!p.alibi_slopes) return load_bias<T>(rule, t, r, add_to);
  alignas(64) T addends[kScoreStride];
  T* const to = addends;
  load_bias<T>(rule, t, r, [to](int64_t c, V add) { store(to + c, add); });
  add_alibi(p, rule, t, r, addends);
  for (int64_t c = t.c0; c < t.c1; c += kLanes<T>) add_to(c, load<V>(addends + c));
}

/// Products of row r become its scores, kHidden where a pair is not kept: also where the bias is −inf, whatever the product
/// was.
template <class T>
inline void score_row(const AttentionParams& p, const ScoreRule& rule, const Tile& t, int64_t r,
                      T* scores, T* slope) {
  if (p.plain_scores) return hide(rule, t, r, scores);
  scale_row(p, t, scores, slope);
  if (rule.bias.data)
    add_bias(p, rule, t, r, scores);
  else if (p.alibi_slopes)
    add_alibi(p, rule, t, r, scores);
  hide(rule, t, r, scores);
}

/// The scores of the tile. query: rows of `ld` elements; key: packed Kᵀ.
template <class E, class T>
inline void score_tile(const AttentionParams& p, const ScoreRule& rule, const Tile& t,
                       const Spans& spans, const E* query, int64_t ld, const E* key, T* scores,
                       T* slope) {
  multiply_tile<E>(t, spans, p.D, query, ld, key, scores);
  for (int64_t r = 0; r < t.rows; ++r)
    score_row(p, rule, t, r, scores + r * kScoreStride, slope ? slope + r * kScoreStride : nullptr);
}

/// 0 in place of −inf, where nothing is kept (yet): exp(−inf − 0) = 0.
template <class T>
FULGURITE_INLINE T finite_base(T max) {
  return max == kHidden<T> ? T(0) : max;
}

/// exp(unit·s − base), the weight of a score, as precise as products in E need it.
template <class E>
struct Weigh {
  using V = Native<Accumulate<E>>;
  V unit, base;

  /// exp of what was centred before.
  FULGURITE_INLINE static Weigh of_centred() {
    constexpr auto kLog2E = static_cast<Accumulate<E>>(kStep<E> == 2 ? 1.4426950408889634 : 1.0);
    Weigh weigh;
    weigh.unit = splat<V>(kLog2E);
    weigh.base = V{};
    return weigh;
  }

  FULGURITE_INLINE Weigh(const AttentionParams& p, Accumulate<E> base_of_row) {
    using T = Accumulate<E>;
    constexpr T kLog2E = kStep<E> == 2 ? T(1.4426950408889634) : T(1);
    unit = splat<V>(static_cast<T>(p.score_unit) * kLog2E);
    base = splat<V>(base_of_row * kLog2E);
  }
  FULGURITE_INLINE V operator()(V score) const {
    if constexpr (kStep<E> == 2)
      return exp2_rough(fma(score, unit, -base));
    else
      return exp_flushed(score * unit - base);
  }

 private:
  Weigh() = default;
};

/// Scores of a row become unit·s − base.
template <class T>
FULGURITE_INLINE void centre_row(const AttentionParams& p, const Tile& t, T base, T* scores) {
  using V = Native<T>;
  const V unit = splat<V>(static_cast<T>(p.score_unit));
  for (int64_t c = t.c0; c < t.c1; c += kLanes<T>)
    store(scores + c, load<V>(scores + c) * unit - base);
}

/// Whether the scores of a row are centred before they are weighed. 2^(s·log2 e − base·log2 e) rounds the last product, by a
/// factor of the row's weights that is beyond all numbers from a base of 10^10 on.
template <class E>
FULGURITE_INLINE bool weighs_centred(Accumulate<E> base) {
  return kStep<E> == 2 && (base > 256 || base < -256);
}

/// Sets x to 0 where the pair's keep bit is 0 and multiplies the rest by 1/(1 − p), for row r of the tile.
template <class T>
inline void drop(const AttentionParams& p, const Tile& t, int64_t r, T* x) {
  const T keep = static_cast<T>(p.dropout.inverse_keep);
  const uint32_t threshold = p.dropout.threshold;
  for (int64_t c = t.c0; c < t.c1; c += kCounterWords) {  // c0 and j0 are multiples of 4
    Counters counters[4];
    const Counters groups = counters_from(static_cast<uint64_t>(t.j0 + c) / 4);
    p.dropout.words(t.b, t.h, t.i0 + r, groups, counters);
    uint32_t words[kCounterWords];
    store_words(words, counters);
    const auto drop_one = [&](int64_t k) {
      x[c + k] = words[k] < threshold ? T(0) : x[c + k] * keep;
    };
    if (c + kCounterWords <= t.c1)
      for (int64_t k = 0; k < kCounterWords; ++k) drop_one(k);
    else
      for (int64_t k = 0; c + k < t.c1; ++k) drop_one(k);
  }
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
