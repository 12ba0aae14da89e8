// Copies of strided matrices in the accumulation type, laid out for the micro-kernel.
#pragma once

#include "simd/convert.h"
#include "simd/microkernel.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// Element (r, c) of a stored matrix at data[r·row_stride + c·column_stride]; S is the storage type.
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

/// Row-major copy, `ld` elements a row (at least n rounded up to a vector); the padding up to ld is zero.
template <class T, class S>
inline void pack_plain(Strided<S> from, int64_t rows, int64_t n, T* to, int64_t ld) {
  for (int64_t r = 0; r < rows; ++r, to += ld) {
    for (int64_t c = n / kLanes<T> * kLanes<T>; c < ld; c += kLanes<T>) store(to + c, Native<T>{});
    for_row<T>(from.data + r * from.row_stride, from.column_stride, n, [to](int64_t c, Native<T> v) { store(to + c, v); });
  }
}

/// B = the matrix itself, K rows by N columns, as panels [N/NR][K][NR].
template <class T, class S>
inline void pack_rows(Strided<S> from, int64_t K, int64_t N, T* to) {
  constexpr int64_t NR = kTileColumns<T>;
  const int64_t padded = pad_columns<T>(N);
  for (int64_t k = 0; k < K; ++k) {
    for (int64_t c = N / kLanes<T> * kLanes<T>; c < padded; c += kLanes<T>) store(to + (c / NR * K + k) * NR + c % NR, Native<T>{});
    for_row<T>(from.data + k * from.row_stride, from.column_stride, N,
               [=](int64_t c, Native<T> v) { store(to + (c / NR * K + k) * NR + c % NR, v); });
  }
}

/// B = the transposed matrix: `from` has N rows of K elements; panels [N/NR][K][NR].
template <class T, class S>
inline void pack_transposed(Strided<S> from, int64_t N, int64_t K, T* to) {
  constexpr int64_t NR = kTileColumns<T>;
  for (int64_t n0 = 0; n0 < N; n0 += NR, to += K * NR) {
    const int64_t n1 = N - n0 < NR ? N - n0 : NR;
    for (int64_t k = 0; k < K; ++k)
      for (int64_t n = n1; n < NR; ++n) to[k * NR + n] = 0;
    for (int64_t n = 0; n < n1; ++n)
      for_row<T>(from.data + (n0 + n) * from.row_stride, from.column_stride, K, [=](int64_t k, Native<T> v) {
        for (int i = 0; i < kLanes<T> && k + i < K; ++i) to[(k + i) * NR + n] = v[i];
      });
  }
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
