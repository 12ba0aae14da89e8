// Stochastic rounding (rules/rounding.h) of blocks.
#pragma once

#include "optim/cpu/kernels/params.h"
#include "simd/convert.h"
#include "simd/philox.h"
#include "simd/rule_math.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// Room for the words of a block that begins anywhere.
inline constexpr int64_t kWords = kBlock + 4 * (kCounters + 1);

/// The words of elements 4·counter … 4·(counter + count) − 1; writes whole vectors.
inline void philox_words(const RoundingSeed& seed, uint32_t key, int64_t counter, int64_t count,
                         uint32_t* words) {
  const uint64_t first = static_cast<uint64_t>(counter);
  for (int64_t c = 0; c < count; c += kCounters, words += kCounterWords) {
    Counters w[4];
    rounding_words(seed, key, counters_from(first + static_cast<uint64_t>(c)), w);
    store_words(words, w);
  }
}

/// Elements index + i·stride of a parameter, i < n ≤ kBlock; where their words stand in `buffer`.
inline const uint32_t* words_of(const RoundingSeed& seed, uint32_t key, int64_t index,
                                int64_t stride, int64_t n, uint32_t* buffer) {
  if (stride == 1) {
    philox_words(seed, key, index / 4, (index % 4 + n + 3) / 4, buffer);
    return buffer + index % 4;
  }
  for (int64_t i = 0; i < n; ++i) buffer[i] = rounding_word(seed, key, index + i * stride);
  return buffer;
}

/// n float32 to storage type S, BFloat16 or Half. Reads whole vectors of values and words.
template <class S>
FULGURITE_INLINE void round_block(S* to, const float* values, const uint32_t* words, int64_t n) {
  constexpr int W = kLanes<float>;
  for (int64_t i = 0; i < n; i += W) {
    const auto x = load<Vec<float, W>>(values + i);
    const auto word = load<Vec<uint32_t, W>>(words + i);
    Vec<uint32_t, W> wide;
    if constexpr (std::is_same_v<S, BFloat16>)
      wide = stochastic_bfloat16(x, word);
    else
      wide = stochastic_float16<VectorMath>(x, word);
    const auto bits = convert<Vec<uint16_t, W>>(wide);
    if (i + W <= n) {
      store(to + i, bits);
    } else {
      for (int64_t k = 0; i + k < n; ++k) to[i + k].bits = bits[k];
    }
  }
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
