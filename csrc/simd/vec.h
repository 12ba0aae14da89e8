// A thin layer over GNU vector extensions: + - * / and comparisons are the compiler's own, here is only what it cannot
// spell. Everything lives in the namespace of the instruction set that the file is compiled for, so that no inline
// function of an AVX-512 object can be linked into code for an older machine.
//
// Vec<T, W> has W lanes; Native<T> fills one register of the set. Wider vectors work too (the compiler splits them),
// which lets every machine test the 16-lane code.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "common/ceil_div.h"
#include "simd/types.h"

#ifndef FULGURITE_VARIANT
#define FULGURITE_VARIANT baseline
#endif
#define FULGURITE_INLINE inline __attribute__((always_inline))

// Whether kernels of this set serve float64 (cmake/isas.cmake).
#ifndef FULGURITE_FLOAT64
#define FULGURITE_FLOAT64 1
#endif

#if defined(__FMA__) || defined(__aarch64__)
#define FULGURITE_HAS_FMA 1
#else
#define FULGURITE_HAS_FMA 0
#endif

// Kernels of a set that multiplies pairs of bfloat16, in vectors or in tiles, serve no other type (cpu/isa.h). Tests
// define either for sets without the instructions: the emulations compute what they compute.
#if !defined(FULGURITE_TILE_PRODUCTS)
#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
#define FULGURITE_TILE_PRODUCTS 1
#else
#define FULGURITE_TILE_PRODUCTS 0
#endif
#endif
#if !defined(FULGURITE_PAIR_PRODUCTS)
#if defined(__AVX512BF16__) || FULGURITE_TILE_PRODUCTS
#define FULGURITE_PAIR_PRODUCTS 1
#else
#define FULGURITE_PAIR_PRODUCTS 0
#endif
#endif

namespace fulgurite {
namespace FULGURITE_VARIANT {

template <class T, int W>
struct VecOf {
  typedef T type __attribute__((vector_size(W * sizeof(T))));
};
template <class T, int W>
using Vec = typename VecOf<T, W>::type;

#if defined(__AVX512F__) || FULGURITE_TILE_PRODUCTS
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif
template <class T>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));
template <class T>
using Native = Vec<T, kLanes<T>>;

/// n elements, to the end of a vector.
template <class T>
FULGURITE_INLINE constexpr int64_t pad_lanes(int64_t n) {
  return ceil_div(n, kLanes<T>) * kLanes<T>;
}

template <class V>
struct VecTraits {
  using Element = std::remove_reference_t<decltype((*static_cast<V*>(nullptr))[0])>;
  static constexpr int kWidth = sizeof(V) / sizeof(Element);
  using Int = Vec<std::conditional_t<sizeof(Element) == 8, int64_t, int32_t>, kWidth>;
};
template <class V>
using Element = typename VecTraits<V>::Element;
template <class V>
using IntOf = typename VecTraits<V>::Int;
template <class V>
inline constexpr int kWidth = VecTraits<V>::kWidth;

/// Calls visit with `count`, or Most if that is less, as a constant of the type std::integral_constant; not for 0.
template <int Most, class Visit>
FULGURITE_INLINE void with_count(int64_t count, const Visit& visit) {
  if (count >= Most) return visit(std::integral_constant<int, Most>{});
  if constexpr (Most > 1) with_count<Most - 1>(count, visit);
}

template <class V>
FULGURITE_INLINE V splat(Element<V> x) {
  return x - V{};  // not V{} + x: that would turn −0 into 0, so the compiler could not drop it
}
template <class V>
FULGURITE_INLINE V load(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}
template <class V>
FULGURITE_INLINE void store(void* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

/// 0, 1, 2, … in the integers of V's width.
template <class V>
FULGURITE_INLINE IntOf<V> lane_index() {
  IntOf<V> index{};
  for (int i = 0; i < kWidth<V>; ++i) index[i] = i;
  return index;
}
template <class V>
FULGURITE_INLINE V select(IntOf<V> mask, V a, V b) {
  return mask ? a : b;
}
template <class To, class From>
FULGURITE_INLINE To bit_cast(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &v, sizeof(To));
  return to;
}

/// Lane by lane, as __builtin_convertvector, which g++ 12 takes through halves where lanes grow: five instructions for one.
template <class To, class From>
FULGURITE_INLINE To convert(From v) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<From, Vec<uint16_t, 16>> && std::is_same_v<To, Vec<uint32_t, 16>>)
    return (To)_mm512_cvtepu16_epi32((__m256i)v);
  if constexpr (std::is_same_v<From, Vec<int16_t, 16>> && std::is_same_v<To, Vec<int32_t, 16>>)
    return (To)_mm512_cvtepi16_epi32((__m256i)v);
  if constexpr (std::is_same_v<From, Vec<float, 8>> && std::is_same_v<To, Vec<double, 8>>)
    return (To)_mm512_cvtps_pd((__m256)v);
#endif
#if defined(__AVX2__)
  if constexpr (std::is_same_v<From, Vec<uint16_t, 8>> && std::is_same_v<To, Vec<uint32_t, 8>>)
    return (To)_mm256_cvtepu16_epi32((__m128i)v);
  if constexpr (std::is_same_v<From, Vec<int16_t, 8>> && std::is_same_v<To, Vec<int32_t, 8>>)
    return (To)_mm256_cvtepi16_epi32((__m128i)v);
  if constexpr (std::is_same_v<From, Vec<float, 4>> && std::is_same_v<To, Vec<double, 4>>)
    return (To)_mm256_cvtps_pd((__m128)v);
#endif
  return __builtin_convertvector(v, To);
}

/// a − b of integers, wrapping round.
template <class I>
FULGURITE_INLINE I subtract_wrapping(I a, I b) {
  using U = Vec<std::make_unsigned_t<Element<I>>, kWidth<I>>;
  return bit_cast<I>(bit_cast<U>(a) - bit_cast<U>(b));
}

FULGURITE_INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
FULGURITE_INLINE double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
FULGURITE_INLINE float sqrt(float x) { return __builtin_sqrtf(x); }
FULGURITE_INLINE double sqrt(double x) { return __builtin_sqrt(x); }

/// a·b + c, rounded once, on every set (a call of the C library's fma where the set has none).
template <class V>
  requires(!std::is_arithmetic_v<V>)
FULGURITE_INLINE V fma(V a, V b, V c) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<V, Vec<float, 16>>)
    return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  if constexpr (std::is_same_v<V, Vec<double, 8>>)
    return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#endif
#if defined(__FMA__)
  if constexpr (std::is_same_v<V, Vec<float, 8>>)
    return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  if constexpr (std::is_same_v<V, Vec<double, 4>>)
    return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
  if constexpr (std::is_same_v<V, Vec<float, 4>>)
    return (V)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
  if constexpr (std::is_same_v<V, Vec<double, 2>>)
    return (V)_mm_fmadd_pd((__m128d)a, (__m128d)b, (__m128d)c);
#elif defined(__aarch64__)
  if constexpr (std::is_same_v<V, Vec<float, 4>>)
    return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
  if constexpr (std::is_same_v<V, Vec<double, 2>>)
    return (V)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#endif
  V r;
  for (int i = 0; i < kWidth<V>; ++i) r[i] = fma(a[i], b[i], c[i]);
  return r;
}

/// a·b + c for products whose rounding is not promised: fused where the set can, two roundings where it cannot.
template <class V>
FULGURITE_INLINE V madd(V a, V b, V c) {
#if FULGURITE_HAS_FMA
  return fma(a, b, c);
#else
  return a * b + c;
#endif
}

/// Correctly rounded square root.
template <class V>
  requires(!std::is_arithmetic_v<V>)
FULGURITE_INLINE V sqrt(V x) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<V, Vec<float, 16>>) return (V)_mm512_sqrt_ps((__m512)x);
  if constexpr (std::is_same_v<V, Vec<double, 8>>) return (V)_mm512_sqrt_pd((__m512d)x);
#endif
#if defined(__AVX2__)
  if constexpr (std::is_same_v<V, Vec<float, 8>>) return (V)_mm256_sqrt_ps((__m256)x);
  if constexpr (std::is_same_v<V, Vec<double, 4>>) return (V)_mm256_sqrt_pd((__m256d)x);
#endif
#if defined(__x86_64__)
  if constexpr (std::is_same_v<V, Vec<float, 4>>) return (V)_mm_sqrt_ps((__m128)x);
  if constexpr (std::is_same_v<V, Vec<double, 2>>) return (V)_mm_sqrt_pd((__m128d)x);
#elif defined(__aarch64__)
  if constexpr (std::is_same_v<V, Vec<float, 4>>) return (V)vsqrtq_f32((float32x4_t)x);
  if constexpr (std::is_same_v<V, Vec<double, 2>>) return (V)vsqrtq_f64((float64x2_t)x);
#endif
  V r;
  for (int i = 0; i < kWidth<V>; ++i) r[i] = sqrt(x[i]);
  return r;
}

/// max(a, b) = a > b ? a : b: b where either is NaN, and where both are zeros. This is what x86's instruction does;
/// it is named because g++ 12 turns the expression into a comparison and a blend when an operand is a constant.
template <class V>
FULGURITE_INLINE V max(V a, V b) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<V, Vec<float, 16>>) return (V)_mm512_max_ps((__m512)a, (__m512)b);
  if constexpr (std::is_same_v<V, Vec<double, 8>>) return (V)_mm512_max_pd((__m512d)a, (__m512d)b);
#endif
#if defined(__AVX2__)
  if constexpr (std::is_same_v<V, Vec<float, 8>>) return (V)_mm256_max_ps((__m256)a, (__m256)b);
  if constexpr (std::is_same_v<V, Vec<double, 4>>) return (V)_mm256_max_pd((__m256d)a, (__m256d)b);
#endif
  return a > b ? a : b;
}
/// min(a, b) = a < b ? a : b: b where either is NaN.
template <class V>
FULGURITE_INLINE V min(V a, V b) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<V, Vec<float, 16>>) return (V)_mm512_min_ps((__m512)a, (__m512)b);
  if constexpr (std::is_same_v<V, Vec<double, 8>>) return (V)_mm512_min_pd((__m512d)a, (__m512d)b);
#endif
#if defined(__AVX2__)
  if constexpr (std::is_same_v<V, Vec<float, 8>>) return (V)_mm256_min_ps((__m256)a, (__m256)b);
  if constexpr (std::is_same_v<V, Vec<double, 4>>) return (V)_mm256_min_pd((__m256d)a, (__m256d)b);
#endif
  return a < b ? a : b;
}
template <class V>
FULGURITE_INLINE V abs(V x) {
  using I = IntOf<V>;
  constexpr Element<I> kMagnitude = sizeof(Element<V>) == 8 ? static_cast<Element<I>>(INT64_MAX)
                                                            : static_cast<Element<I>>(INT32_MAX);
  return bit_cast<V>(bit_cast<I>(x) & kMagnitude);
}
/// Magnitude of x with the sign of s.
template <class V>
FULGURITE_INLINE V copysign(V x, V s) {
  using I = IntOf<V>;
  constexpr Element<I> kSign = sizeof(Element<V>) == 8 ? static_cast<Element<I>>(INT64_MIN)
                                                       : static_cast<Element<I>>(INT32_MIN);
  return bit_cast<V>((bit_cast<I>(x) & ~kSign) | (bit_cast<I>(s) & kSign));
}

template <int First, class V, int... Lane>
FULGURITE_INLINE auto lanes_from(V v, std::integer_sequence<int, Lane...>) {
  return __builtin_shufflevector(v, v, (First + Lane)...);
}
/// combine(lower half, upper half) until one lane is left. By shuffles: a loop over lanes goes through memory, at 60 cycles.
template <class V, class Combine>
FULGURITE_INLINE Element<V> reduce_lanes(V v, const Combine& combine) {
  constexpr int kHalf = kWidth<V> / 2;
  if constexpr (kHalf == 1) {
    using Two = Vec<Element<V>, 2>;
    return combine(Two{v[0], v[0]}, Two{v[1], v[1]})[0];
  } else {
    constexpr auto kHalfLanes = std::make_integer_sequence<int, kHalf>{};
    return reduce_lanes(combine(lanes_from<0>(v, kHalfLanes), lanes_from<kHalf>(v, kHalfLanes)),
                        combine);
  }
}
/// Sum over lanes in a fixed tree: lane i and lane i + W/2 first.
template <class V>
FULGURITE_INLINE Element<V> sum(V v) {
  return reduce_lanes(v, [](auto low, auto high) { return low + high; });
}
/// Largest lane, in the same tree. A NaN in the upper lane of a pair is passed over, one in the lower lane stays: callers
/// that may meet NaN look for it themselves.
template <class V>
FULGURITE_INLINE Element<V> max_lane(V v) {
  return reduce_lanes(v, [](auto low, auto high) { return high > low ? high : low; });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
