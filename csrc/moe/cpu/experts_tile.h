// What the passes of the experts share: weights packed by blocks of depth, gathered rows, products
// over the whole depth.
#pragma once

#include "moe/cpu/params.h"
#include "simd/gemm.h"
#include "simd/kernel.h"
#include "simd/math.h"
#include "simd/pack.h"

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

/// C (+)= A·B for one block of depth of a B packed by pack_deep; A in rows of `ld` elements, from the block on.
template <class E>
FULGURITE_INLINE void multiply_block(const E* rows, int64_t ld, int64_t M, const E* packed,
                                     int64_t k0, int64_t depth, int64_t N, Accumulate<E>* c,
                                     int64_t ldc) {
  gemm<E>(M, N, steps<E>(depth), {rows, ld, kStep<E>},
          {packed + k0 * pad_columns<E>(N), pad_depth<E>(depth), pad_columns<E>(N)}, c, ldc,
          k0 > 0);
}

/// Columns [c0, c0 + n) of the tokens at sorted positions [first, first + rows) as operands, rows kDepthStride apart.
template <class E, class S>
inline void gather(const Matrix& matrix, const int32_t* permutation, int64_t K, int64_t first,
                   int64_t rows, int64_t c0, int64_t n, E* to) {
  for (int64_t r = 0; r < rows; ++r, to += kDepthStride) {
    const Strided<S> row{static_cast<const S*>(matrix.data) +
                             permutation[first + r] / K * matrix.row_stride +
                             c0 * matrix.column_stride,
                         0, matrix.column_stride};
    pack_plain<E>(row, 1, n, to, pad_columns<E>(n));
  }
}

/// Calls tile(first position, rows) over a segment in blocks of kTokenBlock.
template <class Tile>
FULGURITE_INLINE void for_token_blocks(int64_t first, int64_t rows, const Tile& tile) {
  for (int64_t r = 0; r < rows; r += kTokenBlock) tile(first + r, at_most(kTokenBlock, rows - r));
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
