// Vectors of float32 or float64 from and to the storage types. 16-bit stores round to nearest, ties to even, subnormals
// kept, NaN quiet: the same bits on every instruction set (vcvtneps2bf16, which flushes subnormals, only where there are none).
#pragma once

#include "simd/vec.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

template <int W>
FULGURITE_INLINE Vec<float, W> widen_bfloat16(Vec<uint16_t, W> bits) {
  return bit_cast<Vec<float, W>>(convert<Vec<uint32_t, W>>(bits) << 16);
}

template <int W>
FULGURITE_INLINE Vec<uint16_t, W> narrow_bfloat16(Vec<float, W> x) {
#if defined(__AVX512BF16__)
  if constexpr (W == 16) {
    constexpr int kSubnormal = 0x20;
    if (__builtin_expect(_mm512_fpclass_ps_mask((__m512)x, kSubnormal) == 0, 1))
      return (Vec<uint16_t, 16>)_mm512_cvtneps_pbh((__m512)x);
  }
#endif
  using U = Vec<uint32_t, W>;
  const U u = bit_cast<U>(x);
  const U rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const U nan = (u >> 16) | 0x40u;
  return convert<Vec<uint16_t, W>>(x == x ? rounded : nan);
}

/// float16 bits to float32 by integer arithmetic: shift into place, rebias by a multiplication that also normalises subnormals.
template <int W>
FULGURITE_INLINE Vec<float, W> widen_float16_generic(Vec<uint16_t, W> bits) {
  using U = Vec<uint32_t, W>;
  using F = Vec<float, W>;
  const U h = convert<U>(bits);
  const U sign = (h & 0x8000u) << 16;
  const F scaled = bit_cast<F>((h & 0x7fffu) << 13) * 0x1p112f;  // 2^(127 − 15)
  const U finite = bit_cast<U>(scaled);
  const U mantissa = (h & 0x3ffu) << 13;
  const U nan = mantissa | 0x7fc00000u;  // quiet, as the hardware's
  const U special = mantissa != 0u ? nan : U{} + 0x7f800000u;
  return bit_cast<F>(sign | ((h & 0x7c00u) == 0x7c00u ? special : finite));
}

/// float32 to float16 bits by integer arithmetic.
template <int W>
FULGURITE_INLINE Vec<uint16_t, W> narrow_float16_generic(Vec<float, W> x) {
  using U = Vec<uint32_t, W>;
  using F = Vec<float, W>;
  const U u = bit_cast<U>(x);
  const U sign = (u >> 16) & 0x8000u;
  const U magnitude = u & 0x7fffffffu;
  // Subnormal results: adding 0.5 puts the unit 2^-24 into the last place of a float32, which rounds it.
  const U subnormal = bit_cast<U>(bit_cast<F>(magnitude) + 0.5f) - 0x3f000000u;
  const U normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const U finite = magnitude < 0x38800000u ? subnormal : normal;
  const U infinite = U{} + 0x7c00u;
  const U nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  const U big = magnitude > 0x7f800000u ? nan : infinite;
  return convert<Vec<uint16_t, W>>(sign | (magnitude >= 0x477ff000u ? big : finite));
}

template <int W>
FULGURITE_INLINE Vec<float, W> widen_float16(Vec<uint16_t, W> bits) {
#if defined(__AVX512F__)
  if constexpr (W == 16) return (Vec<float, 16>)_mm512_cvtph_ps((__m256i)bits);
#endif
#if defined(__F16C__)
  if constexpr (W == 8) return (Vec<float, 8>)_mm256_cvtph_ps((__m128i)bits);
  if constexpr (W == 4)
    return (Vec<float, 4>)_mm_cvtph_ps(_mm_cvtsi64_si128(bit_cast<int64_t>(bits)));
#endif
#if defined(__aarch64__)
  if constexpr (W == 4) return (Vec<float, 4>)vcvt_f32_f16((float16x4_t)bits);
#endif
  return widen_float16_generic<W>(bits);
}

template <int W>
FULGURITE_INLINE Vec<uint16_t, W> narrow_float16(Vec<float, W> x) {
#if defined(__AVX512F__)
  if constexpr (W == 16)
    return (Vec<uint16_t, 16>)_mm512_cvtps_ph((__m512)x,
                                              _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#endif
#if defined(__F16C__)
  if constexpr (W == 8)
    return (Vec<uint16_t, 8>)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT);
  if constexpr (W == 4)
    return bit_cast<Vec<uint16_t, 4>>(
        _mm_cvtsi128_si64(_mm_cvtps_ph((__m128)x, _MM_FROUND_TO_NEAREST_INT)));
#endif
#if defined(__aarch64__)
  if constexpr (W == 4) return (Vec<uint16_t, 4>)vcvt_f16_f32((float32x4_t)x);
#endif
  return narrow_float16_generic<W>(x);
}

/// W elements of storage type S as vector V of float32 or float64.
template <class V, class S>
FULGURITE_INLINE V load_as(const S* p) {
  constexpr int W = kWidth<V>;
  if constexpr (std::is_same_v<S, Element<V>>) {
    return load<V>(p);
  } else if constexpr (std::is_same_v<S, BFloat16>) {
    return widen_bfloat16<W>(load<Vec<uint16_t, W>>(p));
  } else if constexpr (std::is_same_v<S, Half>) {
    return widen_float16<W>(load<Vec<uint16_t, W>>(p));
  } else {
    return convert<V>(load<Vec<S, W>>(p));
  }
}
template <class S, class V>
FULGURITE_INLINE void store_as(S* p, V v) {
  constexpr int W = kWidth<V>;
  if constexpr (std::is_same_v<S, Element<V>>) {
    store(p, v);
  } else if constexpr (std::is_same_v<S, BFloat16>) {
    store(p, narrow_bfloat16<W>(v));
  } else if constexpr (std::is_same_v<S, Half>) {
    store(p, narrow_float16<W>(v));
  } else {
    store(p, convert<Vec<S, W>>(v));
  }
}

/// Copies n < 2·Size elements by halving blocks of fixed size: a memcpy of unknown length is a call, dearer than the vector's
/// arithmetic.
template <int Size, class S>
FULGURITE_INLINE void copy_few(S* to, const S* from, int64_t n) {
  if (n & Size) {
    __builtin_memcpy(to, from, sizeof(S) * Size);
    to += Size;
    from += Size;
  }
  if constexpr (Size > 1) copy_few<Size / 2>(to, from, n);
}

/// The first n lanes, 0 ≤ n; those past n are `fill`. Reads and writes nothing beyond n.
template <class V, class S>
FULGURITE_INLINE V load_first(const S* p, int64_t n, Element<V> fill = 0) {
  if (n >= kWidth<V>) return load_as<V>(p);
  S lanes[kWidth<V>] = {};
  copy_few<kWidth<V> / 2>(lanes, p, n);
  return select<V>(lane_index<V>() < static_cast<Element<IntOf<V>>>(n), load_as<V>(lanes),
                   splat<V>(fill));
}
template <class S, class V>
FULGURITE_INLINE void store_first(S* p, V v, int64_t n) {
  if (n >= kWidth<V>) return store_as(p, v);
  S lanes[kWidth<V>];
  store_as(lanes, v);
  copy_few<kWidth<V> / 2>(p, lanes, n);
}

template <class S>
FULGURITE_INLINE Accumulate<S> to_accumulate(S x) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
  } else if constexpr (std::is_same_v<S, Half>) {
    return widen_float16<4>(Vec<uint16_t, 4>{x.bits})[0];
  } else {
    return x;
  }
}
template <class S>
FULGURITE_INLINE S from_accumulate(Accumulate<S> x) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    return {narrow_bfloat16<4>(splat<Vec<float, 4>>(x))[0]};
  } else if constexpr (std::is_same_v<S, Half>) {
    return {narrow_float16<4>(splat<Vec<float, 4>>(x))[0]};
  } else {
    return x;
  }
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
