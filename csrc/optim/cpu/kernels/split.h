// Split masters: a float32 as its bfloat16 neighbour and the int16 that is missing,
//   u = (int32(high) << 16) + low          u: the bits of the float32
// high is rounded to nearest, ties away from zero, which is what makes low fit into int16 for every
// float32, the largest ones (high = inf, low < 0) included. NaN gives a quiet NaN and 0.
#pragma once

#include "simd/convert.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

template <int W>
struct SplitHalves {
  Vec<uint16_t, W> high;
  Vec<int16_t, W> low;
};

template <int W>
FULGURITE_INLINE SplitHalves<W> split(Vec<float, W> master) {
  using U = Vec<uint32_t, W>;
  const U u = bit_cast<U>(master);
  const U high = master == master ? (u + 0x8000u) >> 16 : (u >> 16) | 0x40u;
  const U low = master == master ? u - (high << 16) : U{};
  return {convert<Vec<uint16_t, W>>(high),
          bit_cast<Vec<int16_t, W>>(convert<Vec<uint16_t, W>>(low))};
}

template <int W>
FULGURITE_INLINE Vec<float, W> join(Vec<uint16_t, W> high, Vec<int16_t, W> low) {
  using U = Vec<uint32_t, W>;
  const U sign_extended = bit_cast<U>(convert<Vec<int32_t, W>>(low));
  return bit_cast<Vec<float, W>>((convert<U>(high) << 16) + sign_extended);
}

/// The number that a parameter and its low half stand for. Halves that make no number are not of one
/// float32: the parameter has been written (pruned to 0, say, beside a negative low half), and is
/// the number itself.
template <int W>
FULGURITE_INLINE Vec<float, W> value_of(Vec<uint16_t, W> high, Vec<int16_t, W> low) {
  using U = Vec<uint32_t, W>;
  const Vec<float, W> joined = join<W>(high, low);
  return joined == joined ? joined : bit_cast<Vec<float, W>>(convert<U>(high) << 16);
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
