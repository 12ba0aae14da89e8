// Copies of strided matrices in the accumulation type, laid out for the micro-kernel.
#pragma once

#include <utility>

#include "simd/convert.h"
#include "simd/microkernel.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// Element (r, c) of a stored matrix at data[r·row_stride + c·column_stride]; S is the storage
/// type.
template <class S>
struct Strided {
  const S* data;
  int64_t row_stride, column_stride;

  Strided rows_from(int64_t r) const { return {data + r * row_stride, row_stride, column_stride}; }
  Strided transposed() const { return {data, column_stride, row_stride}; }
};

/// Calls put(c, vector) over n elements of a strided row; lanes past n are zero.
template <class T, class S, class Put>
FULGURITE_INLINE void for_row(const S* row, int64_t stride, int64_t n, const Put& put) {
  using V = Native<T>;
  int64_t c = 0;
  if (stride == 1)
    for (; c + kLanes<T> <= n; c += kLanes<T>) put(c, load_as<V>(row + c));
  for (; c < n; c += kLanes<T>) {
    S lanes[kLanes<T>] = {};
    for (int64_t i = 0; i < kLanes<T> && c + i < n; ++i) lanes[i] = row[(c + i) * stride];
    put(c, load_as<V>(lanes));
  }
}

/// Row-major copy, `ld` elements a row (at least n rounded up to a vector); the padding up to ld is
/// zero.
template <class T, class S>
inline void pack_plain(Strided<S> from, int64_t rows, int64_t n, T* to, int64_t ld) {
  for (int64_t r = 0; r < rows; ++r, to += ld) {
    for (int64_t c = n / kLanes<T> * kLanes<T>; c < ld; c += kLanes<T>) store(to + c, Native<T>{});
    for_row<T>(from.data + r * from.row_stride, from.column_stride, n,
               [to](int64_t c, Native<T> v) { store(to + c, v); });
  }
}

/// B = the matrix itself, K rows by N columns, as panels [N/NR][K][NR].
template <class T, class S>
inline void pack_rows(Strided<S> from, int64_t K, int64_t N, T* to) {
  constexpr int64_t NR = kTileColumns<T>;
  const int64_t padded = pad_columns<T>(N);
  for (int64_t k = 0; k < K; ++k) {
    for (int64_t c = N / kLanes<T> * kLanes<T>; c < padded; c += kLanes<T>)
      store(to + (c / NR * K + k) * NR + c % NR, Native<T>{});
    for_row<T>(from.data + k * from.row_stride, from.column_stride, N,
               [=](int64_t c, Native<T> v) { store(to + (c / NR * K + k) * NR + c % NR, v); });
  }
}

template <class V, int... I>
FULGURITE_INLINE V zip_low(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (I / 2 + I % 2 * kWidth<V>)...);
}
template <class V, int... I>
FULGURITE_INLINE V zip_high(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (kWidth<V> / 2 + I / 2 + I % 2 * kWidth<V>)...);
}

/// Lane c of rows[r] becomes lane r of rows[c]: log2 W rounds of zipping the first half of the rows
/// with the second.
template <class V>
FULGURITE_INLINE void transpose(V (&rows)[kWidth<V>]) {
  constexpr int W = kWidth<V>;
  using Lanes = std::make_integer_sequence<int, W>;
#pragma GCC unroll 4
  for (int round = 1; round < W; round *= 2) {
    V zipped[W];
#pragma GCC unroll 16
    for (int i = 0; i < W / 2; ++i) {
      zipped[2 * i] = zip_low(rows[i], rows[i + W / 2], Lanes{});
      zipped[2 * i + 1] = zip_high(rows[i], rows[i + W / 2], Lanes{});
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) rows[i] = zipped[i];
  }
}

/// B = the transposed matrix: `from` has N rows of K elements; panels [N/NR][K][NR].
template <class T, class S>
inline void pack_transposed(Strided<S> from, int64_t N, int64_t K, T* to) {
  using V = Native<T>;
  constexpr int64_t NR = kTileColumns<T>, L = kLanes<T>;
  for (int64_t n0 = 0; n0 < N; n0 += NR, to += K * NR)
    for (int64_t n = 0; n < NR; n += L) {
      const int64_t rows = N - n0 - n < L ? N - n0 - n : L;
      int64_t k = 0;
      if (rows == L && from.column_stride == 1)
        for (; k + L <= K; k += L) {
          V block[L];
          for (int64_t i = 0; i < L; ++i)
            block[i] = load_as<V>(from.data + (n0 + n + i) * from.row_stride + k);
          transpose(block);
          for (int64_t i = 0; i < L; ++i) store(to + (k + i) * NR + n, block[i]);
        }
      for (; k < K; ++k) {
        S lanes[L] = {};
        for (int64_t i = 0; i < rows; ++i)
          lanes[i] = from.data[(n0 + n + i) * from.row_stride + k * from.column_stride];
        store(to + k * NR + n, load_as<V>(lanes));
      }
    }
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
