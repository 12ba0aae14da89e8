// What the passes of the experts share: weights packed by blocks of depth, gathered rows, products
// over the whole depth.
#pragma once

#include "moe/cpu/kernels/experts_params.h"
#include "simd/gemm.h"
#include "simd/kernel.h"
#include "simd/math.h"
#include "simd/unpacked.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

inline constexpr int64_t kDepthStride =
    kDepthBlock + 16;  // rows of packed A: not a power of two apart, which would share cache sets

inline constexpr int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

/// Element (k, n) of B as a strided matrix of expert e; `from` says at which row and column it
/// begins.
template <class S>
FULGURITE_INLINE Strided<S> matrix_of(const ExpertMatrices& m, int64_t e, int64_t row,
                                      int64_t column) {
  return {static_cast<const S*>(m.data) + e * m.expert_stride + row * m.row_stride +
              column * m.column_stride,
          m.row_stride, m.column_stride};
}

/// A from column k on, a whole number of steps.
template <class E>
FULGURITE_INLINE MatrixA<E> columns_from(MatrixA<E> a, int64_t k) {
  return {a.data + k, a.row_stride, a.step_stride};
}

/// B, K rows by N columns, in blocks of kDepthBlock rows, each as panels; block k0 begins at
/// k0·pad_columns(N).
template <class E, class S>
inline void pack_deep(Strided<S> b, int64_t K, int64_t N, E* to) {
  for (int64_t k0 = 0; k0 < K; k0 += kDepthBlock) {
    const int64_t depth = at_most(kDepthBlock, K - k0);
    const Strided<S> block = b.rows_from(k0);
    if (b.row_stride == 1)
      pack_transposed<E>(block.transposed(), N, depth, to + k0 * pad_columns<E>(N));
    else
      pack_rows<E>(block, depth, N, to + k0 * pad_columns<E>(N));
  }
}

/// C (+)= A·B for one block of depth of a B packed by pack_deep; A begins at the block.
template <class E>
FULGURITE_INLINE void multiply_block(MatrixA<E> a, int64_t M, const E* packed, int64_t k0,
                                     int64_t depth, int64_t N, Accumulate<E>* c, int64_t ldc) {
  gemm<E>(M, N, steps<E>(depth), a,
          {packed + k0 * pad_columns<E>(N), pad_depth<E>(depth), pad_columns<E>(N)}, c, ldc,
          k0 > 0);
}

/// The same for few rows and a B that is not packed, over the whole of K. A B with contiguous columns is read column by column to the
/// end, not in pieces by turns.
template <class E, class S>
inline void multiply_few(MatrixA<E> a, int64_t M, Strided<S> b, int64_t K, int64_t N,
                         Accumulate<E>* c, int64_t ldc) {
  const int64_t at_once = b.column_stride == 1 ? N : kLanes<Accumulate<E>>;
  for (int64_t n = 0; n < N; n += at_once)
    for (int64_t k0 = 0; k0 < K; k0 += kDepthBlock)
      multiply_unpacked<E>(M, at_most(at_once, N - n), at_most(kDepthBlock, K - k0),
                           columns_from(a, k0), b.columns_from(n).rows_from(k0), c + n, ldc,
                           k0 > 0);
}

/// Row r of the sorted positions, from a column on.
template <class S>
FULGURITE_INLINE const S* sorted_row(const SortedRows& rows, int64_t r, int64_t column) {
  const int64_t index = rows.permutation ? rows.permutation[r] / rows.K : r;
  return static_cast<const S*>(rows.matrix.data) + index * rows.matrix.row_stride +
         column * rows.matrix.column_stride;
}

/// Columns [c0, c0 + n) of the rows at sorted positions [first, first + count) as operands, `ld` elements apart.
template <class E, class S>
inline void gather(const SortedRows& rows, int64_t first, int64_t count, int64_t c0, int64_t n,
                   E* to, int64_t ld) {
  for (int64_t r = 0; r < count; ++r, to += ld) {
    const Strided<S> row{sorted_row<S>(rows, first + r, c0), 0, rows.matrix.column_stride};
    pack_plain<E>(row, 1, n, to, pad_columns<E>(n));
  }
}

/// Operands where they stand, from sorted position `first` on.
template <class E>
FULGURITE_INLINE MatrixA<E> operand_matrix(const SortedRows& rows, int64_t first) {
  return {sorted_row<E>(rows, first, 0), rows.matrix.row_stride, kStep<E>};
}

/// Columns [c0, c0 + n) of expert e's row in the accumulation type, zero up to a whole vector.
template <class S, class T>
inline void load_bias(const ExpertRows& bias, int64_t e, int64_t c0, int64_t n, T* to) {
  const S* const row =
      static_cast<const S*>(bias.data) + e * bias.expert_stride + c0 * bias.column_stride;
  for_row<T>(row, bias.column_stride, n, [to](int64_t c, Native<T> v) { store(to + c, v); });
}

/// C += bias in n columns of each row.
template <class T>
inline void add_bias(const T* bias, int64_t rows, int64_t n, T* c, int64_t ldc) {
  using V = Native<T>;
  for (int64_t r = 0; r < rows; ++r, c += ldc)
    for (int64_t k = 0; k < n; k += kLanes<T>) store(c + k, load<V>(c + k) + load<V>(bias + k));
}

/// Calls visit(first position, rows) over a segment in blocks of kTokenBlock.
template <class Visit>
FULGURITE_INLINE void for_token_blocks(int64_t first, int64_t rows, const Visit& visit) {
  for (int64_t r = 0; r < rows; r += kTokenBlock) visit(first + r, at_most(kTokenBlock, rows - r));
}

/// Calls put(c, lanes) over n columns, `lanes` of them at a time; the last may be fewer than a
/// vector.
template <class T, class Put>
FULGURITE_INLINE void for_lanes(int64_t n, const Put& put) {
  for (int64_t c = 0; c < n; c += kLanes<T>) put(c, at_most(kLanes<T>, n - c));
}
template <class V, class S>
FULGURITE_INLINE V load_lanes(const S* p, int64_t lanes) {
  return lanes == kWidth<V> ? load_as<V>(p) : load_first<V>(p, lanes);
}
template <class S, class V>
FULGURITE_INLINE void store_lanes(S* p, V v, int64_t lanes) {
  if (lanes == kWidth<V>) return store_as(p, v);
  store_first(p, v, lanes);
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
