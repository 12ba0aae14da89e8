// Split masters (rules/split.h) on vectors of halves.
#pragma once

#include "optim/rules/split.h"
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
  const auto bits = split_bits(master);
  return {convert<Vec<uint16_t, W>>(bits.high),
          bit_cast<Vec<int16_t, W>>(convert<Vec<uint16_t, W>>(bits.low))};
}

template <int W>
FULGURITE_INLINE Vec<uint32_t, W> sign_extended(Vec<int16_t, W> low) {
  return bit_cast<Vec<uint32_t, W>>(convert<Vec<int32_t, W>>(low));
}

template <int W>
FULGURITE_INLINE Vec<float, W> join(Vec<uint16_t, W> high, Vec<int16_t, W> low) {
  return joined_bits<Vec<float, W>>(convert<Vec<uint32_t, W>>(high), sign_extended<W>(low));
}

/// The number that a parameter and its low half stand for.
template <int W>
FULGURITE_INLINE Vec<float, W> value_of(Vec<uint16_t, W> high, Vec<int16_t, W> low) {
  return split_value<Vec<float, W>>(convert<Vec<uint32_t, W>>(high), sign_extended<W>(low));
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
