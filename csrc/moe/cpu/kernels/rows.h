// What routing and losses share on one row of logits: loading and sums of a fixed order.
//
// Everything here gives the same bits on every instruction set: exp is a fixed sequence of fma, and
// sums run over groups of 64 bytes whatever the width of a register is.
#pragma once

#include "moe/cpu/kernels/params.h"
#include "simd/kernel.h"
#include "simd/pack.h"
#include "simd/rule_math.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

template <class T>
inline constexpr T kInfinity = static_cast<T>(__builtin_inf());

/// Where element (r, c) stands.
FULGURITE_INLINE int64_t offset(const Matrix& matrix, int64_t r, int64_t c) {
  return r * matrix.row_stride + c * matrix.column_stride;
}

/// Row r in the accumulation type, filled up to padded_row(n) elements with `fill`.
template <class S, class T>
inline void load_row(const Matrix& matrix, int64_t r, int64_t n, T fill, T* to) {
  using V = Native<T>;
  for (int64_t c = n / kLanes<T> * kLanes<T>; c < padded_row(n); c += kLanes<T>) store(to + c, V{});
  for_row<T>(static_cast<const S*>(matrix.data) + r * matrix.row_stride, matrix.column_stride, n,
             [to](int64_t c, V v) { store(to + c, v); });
  for (int64_t c = n; c < padded_row(n); ++c) to[c] = fill;
}

/// Σ value(c) over vectors c = 0, lanes, … of a padded row: 64-byte groups are added up, then
/// folded in halves.
template <class T, class Value>
FULGURITE_INLINE T row_sum(int64_t n, const Value& value) {
  using V = Native<T>;
  constexpr int64_t kGroup = 64 / sizeof(T), kParts = kGroup / kLanes<T>;
  V acc[kParts] = {};
  for (int64_t c = 0; c < padded_row(n); c += kGroup)
    for (int64_t part = 0; part < kParts; ++part) acc[part] += value(c + part * kLanes<T>);
  for (int64_t half = kParts / 2; half > 0; half /= 2)
    for (int64_t part = 0; part < half; ++part) acc[part] += acc[part + half];
  return sum(acc[0]);
}

/// The largest element; NaN are passed over, −inf if there is nothing else.
template <class T>
inline T row_max(int64_t n, const T* x) {
  using V = Native<T>;
  V m = splat<V>(-kInfinity<T>);
  for (int64_t c = 0; c < padded_row(n); c += kLanes<T>) m = max(load<V>(x + c), m);
  return max_lane(m);
}

/// to = e^(x − max x); returns their sum and the maximum.
template <class T>
inline T exponentials(int64_t n, const T* x, T* to, T* highest) {
  using V = Native<T>;
  const T m = row_max(n, x);
  *highest = m;
  return row_sum<T>(n, [&](int64_t c) {
    const V power = exp(load<V>(x + c) - m);
    store(to + c, power);
    return power;
  });
}

/// x /= divisor, 0 in the padding.
template <class T>
inline void divide_row(int64_t n, T* x, T divisor) {
  using V = Native<T>;
  for (int64_t c = 0; c < padded_row(n); c += kLanes<T>) store(x + c, load<V>(x + c) / divisor);
  for (int64_t c = n; c < padded_row(n); ++c) x[c] = 0;
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
