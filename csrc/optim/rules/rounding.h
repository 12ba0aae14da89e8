// Stochastic rounding of float32 to 16 bits. Of its two neighbours a value takes the one further
// from zero iff
//   word < 2³²·fraction      fraction: what rounding towards zero cuts off, in units of the last place
// so that on average nothing is lost, and what 16 bits can hold stays as it is. The word of element
// e is number e mod 4 of Philox4x32-10 with the seed as key and the counter
//   (⌊e/4⌋, ⌊e/4⌋ >> 32, step, key)    e: row-major index, whatever the strides
#pragma once

#include "common/philox.h"
#include "common/value_bits.h"

namespace fulgurite {

/// What the words of stochastic rounding have in common.
struct RoundingSeed {
  PhiloxKey key;
  uint32_t step;
};

/// The words of seed, a tensor of (seed, step).
FULGURITE_HOST_DEVICE RoundingSeed rounding_seed(int64_t seed, int64_t step) {
  const auto key = static_cast<uint64_t>(seed);
  return {{static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)},
          static_cast<uint32_t>(step)};
}

/// Words of elements 4·counter … 4·counter + 3 of the tensor with this key. U as in philox4x32.
template <class U>
FULGURITE_HOST_DEVICE void rounding_words(const RoundingSeed& seed, uint32_t key, U counter,
                                          U (&words)[4]) {
  words[0] = counter;
  words[1] = counter >> 32;
  words[2] = U{} + uint64_t{seed.step};
  words[3] = U{} + uint64_t{key};
  philox4x32(words[0], words[1], words[2], words[3], seed.key);
}

/// The word of one element.
FULGURITE_HOST_DEVICE uint32_t rounding_word(const RoundingSeed& seed, uint32_t key,
                                             int64_t element) {
  uint64_t words[4];
  rounding_words(seed, key, static_cast<uint64_t>(element) / 4, words);
  const uint64_t first = element % 2 ? words[1] : words[0],
                 second = element % 2 ? words[3] : words[2];
  return static_cast<uint32_t>(element % 4 < 2 ? first : second);
}

/// Bits of x in bfloat16; V: float, or a vector of it.
template <class V>
FULGURITE_HOST_DEVICE Unsigned<V> stochastic_bfloat16(V x, Unsigned<V> word) {
  using U = Unsigned<V>;
  const U u = same_bits<U>(x);
  const U up = word < (u << 16) ? U{} + 1u : U{};
  return x == x ? (u >> 16) + up : (u >> 16) | 0x40u;
}

/// Bits of x in float16.
template <class Math, class V>
FULGURITE_HOST_DEVICE Unsigned<V> stochastic_float16(V x, Unsigned<V> word) {
  using U = Unsigned<V>;
  using I = Integer<V>;
  const U u = same_bits<U>(x);
  const U sign = (u >> 16) & 0x8000u;
  const U magnitude = u & 0x7fffffffu;
  // Below 2⁻¹⁴ the unit is 2⁻²⁴. The cap keeps the conversion of lanes that are not taken in range.
  const V units = Math::min(same_bits<V>(magnitude) * 0x1p24f, uniform<V>(1024.0f));
  const I whole = converted<I>(units);
  const V fraction = units - converted<V>(whole);
  const U small_cut = same_bits<U>(converted<I>(fraction * 0x1p31f)) << 1;
  const U down = magnitude < 0x38800000u ? same_bits<U>(whole) : (magnitude - 0x38000000u) >> 13;
  const U cut = magnitude < 0x38800000u ? small_cut : magnitude << 19;
  const U finite = down + (word < cut ? U{} + 1u : U{});
  const U nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  const U big = magnitude > 0x7f800000u ? nan : U{} + 0x7c00u;
  return sign | (magnitude >= 0x47800000u ? big : finite);
}

}  // namespace fulgurite
