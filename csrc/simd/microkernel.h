// The one matrix product that every operator uses: C (+)= A·B with A read by broadcasts and B by rows of vectors.
//
//   C[m][n] (+)= Σ_k A[m·rs + k·ks] · B[k·ldb + n]        T = float or double, all three in the accumulation type
//
// A's free strides make a transposed A cost nothing; B's rows are read contiguously. MR×NR of C stay in registers over the
// whole of k: 6×16 with AVX2 (12 accumulators, 2 vectors of B, 1 broadcast of 16 registers), 6×64 with AVX-512 (24 of 32).
// C is added after the chain over k, not before: shorter chains of additions, smaller errors.
// Columns come in multiples of NR: callers pad B's rows and C's rows (pad_columns), never the rows of A.
#pragma once

#include "simd/vec.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

#if defined(__AVX512F__)
inline constexpr int kTileRows = 6, kTileVectors = 4;
#elif defined(__AVX2__)
inline constexpr int kTileRows = 6, kTileVectors = 2;
#else
inline constexpr int kTileRows = 4, kTileVectors = 2;
#endif
template <class T>
inline constexpr int kTileColumns = kTileVectors * kLanes<T>;

template <class T>
FULGURITE_INLINE int64_t pad_columns(int64_t n) {
  return (n + kTileColumns<T> - 1) / kTileColumns<T> * kTileColumns<T>;
}

template <class T>
struct MatrixA {
  const T* data;
  int64_t row_stride, k_stride;
};

template <int MR, class T>
FULGURITE_INLINE void gemm_tile(const T* a, int64_t rs, int64_t ks, const T* b, int64_t ldb, int64_t K, T* c, int64_t ldc, bool accumulate) {
  using V = Native<T>;
  V acc[MR][kTileVectors] = {};
  for (int64_t k = 0; k < K; ++k, a += ks, b += ldb) {
    V row[kTileVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kTileVectors; ++j) row[j] = load<V>(b + j * kLanes<T>);
#pragma GCC unroll 6
    for (int m = 0; m < MR; ++m) {
      const V x = splat<V>(a[m * rs]);
#pragma GCC unroll 4
      for (int j = 0; j < kTileVectors; ++j) acc[m][j] = madd(x, row[j], acc[m][j]);
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int j = 0; j < kTileVectors; ++j) {
      T* const p = c + m * ldc + j * kLanes<T>;
      store(p, accumulate ? load<V>(p) + acc[m][j] : acc[m][j]);
    }
}

/// The product of M rows; N is rounded up to whole tiles. Blocks of rows of A stay in the first-level cache.
template <class T>
inline void gemm(int64_t M, int64_t N, int64_t K, MatrixA<T> a, const T* b, int64_t ldb, T* c, int64_t ldc, bool accumulate) {
  for (int64_t n = 0; n < N; n += kTileColumns<T>) {
    int64_t m = 0;
    for (; m + kTileRows <= M; m += kTileRows)
      gemm_tile<kTileRows>(a.data + m * a.row_stride, a.row_stride, a.k_stride, b + n, ldb, K, c + m * ldc + n, ldc, accumulate);
    for (; m + 2 <= M; m += 2)
      gemm_tile<2>(a.data + m * a.row_stride, a.row_stride, a.k_stride, b + n, ldb, K, c + m * ldc + n, ldc, accumulate);
    for (; m < M; ++m)
      gemm_tile<1>(a.data + m * a.row_stride, a.row_stride, a.k_stride, b + n, ldb, K, c + m * ldc + n, ldc, accumulate);
  }
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
