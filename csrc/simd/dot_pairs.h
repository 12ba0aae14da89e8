// Products of pairs of bfloat16, vdpbf16ps, and the conversion that feeds it, each with an emulation that computes what the
// instruction computes, in its order. Subnormal operands and results count as zero of their sign, whatever the processor's
// mode. Not emulated: the payload of a NaN, and a result that only its rounding lifts to the smallest normal number (the
// instruction flushes it).
#pragma once

#include <utility>

#include "simd/convert.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

FULGURITE_INLINE float flush_subnormal(float x) {
  return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.f, x) : x;
}
FULGURITE_INLINE float flushed_float(uint16_t bfloat16) {
  return flush_subnormal(bit_cast<float>(uint32_t{bfloat16} << 16));
}
FULGURITE_INLINE float flushed_fma(uint16_t a, uint16_t b, float c) {
  return flush_subnormal(fma(flushed_float(a), flushed_float(b), c));
}

/// acc[i] += a[2i+1]·b[2i+1], then += a[2i]·b[2i]: two fma in this order.
template <int W>
FULGURITE_INLINE Vec<float, W> dot_pairs_emulated(Vec<float, W> acc, Vec<uint16_t, 2 * W> a,
                                                  Vec<uint16_t, 2 * W> b) {
  for (int i = 0; i < W; ++i) {
    const float odd = flushed_fma(a[2 * i + 1], b[2 * i + 1], flush_subnormal(acc[i]));
    acc[i] = flushed_fma(a[2 * i], b[2 * i], odd);
  }
  return acc;
}
template <int W>
FULGURITE_INLINE Vec<float, W> dot_pairs(Vec<float, W> acc, Vec<uint16_t, 2 * W> a,
                                         Vec<uint16_t, 2 * W> b) {
#if defined(__AVX512BF16__)
  if constexpr (W == 16)
    return (Vec<float, 16>)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#endif
  return dot_pairs_emulated<W>(acc, a, b);
}

template <int W, int... Lane>
FULGURITE_INLINE Vec<uint16_t, 2 * W> join(Vec<uint16_t, W> low, Vec<uint16_t, W> high,
                                           std::integer_sequence<int, Lane...>) {
  return __builtin_shufflevector(low, high, Lane...);
}
template <int W>
FULGURITE_INLINE Vec<float, W> flush_subnormals(Vec<float, W> x) {
  return abs(x) < 0x1p-126f ? copysign(Vec<float, W>{}, x) : x;
}
/// Both vectors rounded to nearest even, low's lanes first.
template <int W>
FULGURITE_INLINE Vec<uint16_t, 2 * W> narrow_two_emulated(Vec<float, W> low, Vec<float, W> high) {
  return join<W>(narrow_bfloat16<W>(flush_subnormals<W>(low)),
                 narrow_bfloat16<W>(flush_subnormals<W>(high)),
                 std::make_integer_sequence<int, 2 * W>{});
}
template <int W>
FULGURITE_INLINE Vec<uint16_t, 2 * W> narrow_two(Vec<float, W> low, Vec<float, W> high) {
#if defined(__AVX512BF16__)
  if constexpr (W == 16) return (Vec<uint16_t, 32>)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
#endif
  return narrow_two_emulated<W>(low, high);
}

template <int W, int... Lane>
FULGURITE_INLINE Vec<uint16_t, 2 * W> alternate(Vec<uint16_t, 2 * W> x,
                                                std::integer_sequence<int, Lane...>) {
  return __builtin_shufflevector(x, x, (Lane % 2 * W + Lane / 2)...);
}
/// Pair i is (even[i], odd[i]).
template <int W>
FULGURITE_INLINE Vec<uint16_t, 2 * W> narrow_pairs(Vec<float, W> even, Vec<float, W> odd) {
  return alternate<W>(narrow_two<W>(even, odd), std::make_integer_sequence<int, 2 * W>{});
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
