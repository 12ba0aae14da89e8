// Stochastic rounding of float32 to 16 bits. Of its two neighbours a value takes the one further
// from zero iff
//   word < 2³²·fraction      fraction: what rounding towards zero cuts off, in units of the last place
// so that on average nothing is lost, and what 16 bits can hold stays as it is. The word of element
// e is number e mod 4 of Philox4x32-10 with the seed as key and the counter
//   (⌊e/4⌋, ⌊e/4⌋ >> 32, step, key)    e: row-major index, whatever the strides
#pragma once

#include "optim/cpu/kernels/params.h"
#include "simd/convert.h"
#include "simd/philox.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

template <int W>
FULGURITE_INLINE Vec<uint16_t, W> round_bfloat16(Vec<float, W> x, Vec<uint32_t, W> word) {
  using U = Vec<uint32_t, W>;
  const U u = bit_cast<U>(x);
  const U up = word < (u << 16) ? U{} + 1u : U{};
  return convert<Vec<uint16_t, W>>(x == x ? (u >> 16) + up : (u >> 16) | 0x40u);
}

template <int W>
FULGURITE_INLINE Vec<uint16_t, W> round_float16(Vec<float, W> x, Vec<uint32_t, W> word) {
  using U = Vec<uint32_t, W>;
  using F = Vec<float, W>;
  const U u = bit_cast<U>(x);
  const U sign = (u >> 16) & 0x8000u;
  const U magnitude = u & 0x7fffffffu;
  // Below 2⁻¹⁴ the unit is 2⁻²⁴. The cap keeps the conversion of lanes that are not taken in range.
  const F units = min(bit_cast<F>(magnitude) * 0x1p24f, splat<F>(1024.0f));
  const Vec<int32_t, W> whole = convert<Vec<int32_t, W>>(units);
  const F fraction = units - convert<F>(whole);
  const U small_cut = bit_cast<U>(convert<Vec<int32_t, W>>(fraction * 0x1p31f)) << 1;
  const auto is_small = magnitude < 0x38800000u;
  const U down = is_small ? bit_cast<U>(whole) : (magnitude - 0x38000000u) >> 13;
  const U cut = is_small ? small_cut : magnitude << 19;
  const U finite = down + (word < cut ? U{} + 1u : U{});
  const U nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  const U big = magnitude > 0x7f800000u ? nan : U{} + 0x7c00u;
  return convert<Vec<uint16_t, W>>(sign | (magnitude >= 0x47800000u ? big : finite));
}

/// Room for the words of a block that begins anywhere.
inline constexpr int64_t kWords = kBlock + 4 * (kCounters + 1);

/// The words of elements 4·counter … 4·(counter + count) − 1; writes whole vectors.
inline void philox_words(const RoundingSeed& seed, uint32_t key, int64_t counter, int64_t count,
                         uint32_t* words) {
  const uint64_t first = static_cast<uint64_t>(counter);
  for (int64_t c = 0; c < count; c += kCounters, words += kCounterWords) {
    const Counters index = counters_from(first + static_cast<uint64_t>(c));
    Counters w[4] = {index, index >> 32, Counters{} + seed.step, Counters{} + key};
    philox4x32(w[0], w[1], w[2], w[3], seed.key);
    store_words(words, w);
  }
}

/// The word of one element.
inline uint32_t philox_word(const RoundingSeed& seed, uint32_t key, int64_t element) {
  const uint64_t counter = static_cast<uint64_t>(element) / 4;
  uint64_t w[4] = {counter, counter >> 32, seed.step, key};
  philox4x32(w[0], w[1], w[2], w[3], seed.key);
  return static_cast<uint32_t>(w[element % 4]);
}

/// Elements index + i·stride of a parameter, i < n ≤ kBlock; where their words stand in `buffer`.
inline const uint32_t* words_of(const RoundingSeed& seed, uint32_t key, int64_t index,
                                int64_t stride, int64_t n, uint32_t* buffer) {
  if (stride == 1) {
    philox_words(seed, key, index / 4, (index % 4 + n + 3) / 4, buffer);
    return buffer + index % 4;
  }
  for (int64_t i = 0; i < n; ++i) buffer[i] = philox_word(seed, key, index + i * stride);
  return buffer;
}

/// n float32 to storage type S, BFloat16 or Half. Reads whole vectors of values and words.
template <class S>
FULGURITE_INLINE void round_block(S* to, const float* values, const uint32_t* words, int64_t n) {
  constexpr int W = kLanes<float>;
  for (int64_t i = 0; i < n; i += W) {
    const auto x = load<Vec<float, W>>(values + i);
    const auto word = load<Vec<uint32_t, W>>(words + i);
    Vec<uint16_t, W> bits;
    if constexpr (std::is_same_v<S, BFloat16>)
      bits = round_bfloat16<W>(x, word);
    else
      bits = round_float16<W>(x, word);
    if (i + W <= n) {
      store(to + i, bits);
    } else {
      for (int64_t k = 0; i + k < n; ++k) to[i + k].bits = bits[k];
    }
  }
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
