// Split masters: a float32 as its bfloat16 neighbour and the int16 that is missing,
//   u = (int32(high) << 16) + low          u: the bits of the float32
// high is rounded to nearest, ties away from zero, which is what makes low fit into int16 for every
// float32, the largest ones (high = inf, low < 0) included. NaN gives a quiet NaN and 0.
#pragma once

#include "common/value_bits.h"

namespace fulgurite {

/// The low 16 bits of each count.
template <class V>
struct SplitBits {
  Unsigned<V> high, low;
};

/// V: float, or a vector of it.
template <class V>
FULGURITE_HOST_DEVICE SplitBits<V> split_bits(V master) {
  using U = Unsigned<V>;
  const U u = same_bits<U>(master);
  const U high = master == master ? (u + 0x8000u) >> 16 : (u >> 16) | 0x40u;
  const U low = master == master ? u - (high << 16) : U{};
  return {high, low};
}

/// `low` with its sign in all higher bits.
template <class V>
FULGURITE_HOST_DEVICE V joined_bits(Unsigned<V> high, Unsigned<V> low) {
  return same_bits<V>((high << 16) + low);
}

/// The number that a parameter and its low half stand for. Halves that make no number are not of one
/// float32: the parameter has been written (pruned to 0, say, beside a negative low half), and is
/// the number itself.
template <class V>
FULGURITE_HOST_DEVICE V split_value(Unsigned<V> high, Unsigned<V> low) {
  const V joined = joined_bits<V>(high, low);
  return joined == joined ? joined : same_bits<V>(high << 16);
}

}  // namespace fulgurite
