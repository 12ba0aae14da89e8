// The K largest of a token's keys by a list of single numbers, one token in each lane: the low b bits of a key, 2^b ≥ E, give way to
// whose it is,
//
//   x_e = ⌊key_e⌋ to a multiple of 2^b, + (2^b − 1 − e)        top_j, x = max(top_j, x), min(top_j, x)
//
// so that a place takes two instructions for each expert, where keys and experts side by side take six. The order is that of the keys,
// ties to the lowest index, unless two of them differ in the low bits alone. Callers hear of it and take the other list (largest.h).
#pragma once

#include "moe/cpu/kernels/largest.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// As many low bits as NaN's key, the lowest of all, leaves below it.
inline constexpr int kMostExpertBits = 16;

template <class I>
FULGURITE_INLINE bool any_lane(I mask) {
  return reduce_lanes(mask, [](auto low, auto high) { return low | high; }) != 0;
}

/// Keys with their experts' numbers; `top` holds K of them, falling. Returns the largest that is not in it.
template <class I>
FULGURITE_INLINE I insert_packed(const I* keys, int64_t E, I mask, I* top, int64_t K) {
  I number = mask, rest = top[K - 1];
  for (int64_t e = 0; e < E; ++e, number -= 1) {
    I x = (keys[e] & ~mask) | number;
#pragma GCC unroll 8
    for (int64_t j = 0; j < K; ++j) {
      const I larger = x > top[j] ? x : top[j];
      x = x > top[j] ? top[j] : x;
      top[j] = larger;
    }
    rest = x > rest ? x : rest;
  }
  return rest;
}

template <int Places, class I>
I insert_packed_in_registers(const I* keys, int64_t E, I mask, I* top) {
  I keep[Places];
#pragma GCC unroll 8
  for (int j = 0; j < Places; ++j) keep[j] = top[j];
  const I rest = insert_packed(keys, E, mask, keep, Places);
#pragma GCC unroll 8
  for (int j = 0; j < Places; ++j) top[j] = keep[j];
  return rest;
}

/// at[j]: whose the j-th largest key is, lane by lane. `low`: the bits of all the numbers whose keys they are, joined by or in any lane;
/// numbers with zeros there, as 16-bit ones have, lose nothing. False where it could not be told.
template <class I>
bool largest_packed(const I* keys, int64_t E, int64_t K, I lowest, I low, I* top, I* at) {
  int bits = 0;
  while ((int64_t{1} << bits) < E) ++bits;
  if (bits > kMostExpertBits) return false;
  const I mask = splat<I>(static_cast<Element<I>>((1 << bits) - 1));
  for (int64_t j = 0; j < K; ++j) top[j] = lowest;
  I rest{};
  if (K <= kRegisterPlaces)
    with_count<kRegisterPlaces>(K, [&](auto places) {
      rest = insert_packed_in_registers<decltype(places)::value>(keys, E, mask, top);
    });
  else
    rest = insert_packed(keys, E, mask, top, K);
  I close{};  // neighbours that share their upper bits
  for (int64_t j = 0; j < K; ++j) {
    close |= ((top[j] ^ (j + 1 < K ? top[j + 1] : rest)) & ~mask) == 0;
    at[j] = mask - (top[j] & mask);
  }
  return !any_lane(close) || !any_lane(low & mask);
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
