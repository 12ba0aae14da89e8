// The one matrix product that every operator uses: C (+)= A·B with A read by broadcasts and B by rows of vectors.
//
//   C[m][n] (+)= Σ_k A[m·rs + k·ks] · B[k][n]        T = float or double, all three in the accumulation type
//
// A's free strides make a transposed A cost nothing. B comes in panels of NR columns, [N/NR][K][NR], zero-padded
// (simd/pack.h): read in place with a stride of 1024 bytes its rows would share four cache sets (76 against 98 GFLOP/s).
// MR×NR of C stay in registers over the whole of k: 6×16 with AVX2 (12 accumulators, 2 vectors of B, 1 broadcast of 16
// registers), 6×64 with AVX-512 (24 of 32). C is added after the chain over k, not before: shorter chains, smaller errors.
#pragma once

#include "common/ceil_div.h"
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
  return ceil_div(n, kTileColumns<T>) * kTileColumns<T>;
}

template <class T>
struct MatrixA {
  const T* data;
  int64_t row_stride, k_stride;
};

template <class T>
struct PanelsB {
  const T* data;
  int64_t panel_stride;  // elements from one panel to the next: rows packed · NR
};

template <int MR, class T>
FULGURITE_INLINE void gemm_tile(MatrixA<T> a, const T* b, int64_t K, T* c, int64_t ldc,
                                bool accumulate) {
  using V = Native<T>;
  V acc[MR][kTileVectors] = {};
  const T* x = a.data;
  for (int64_t k = 0; k < K; ++k, x += a.k_stride, b += kTileColumns<T>) {
    V row[kTileVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kTileVectors; ++j) row[j] = load<V>(b + j * kLanes<T>);
#pragma GCC unroll 6
    for (int m = 0; m < MR; ++m) {
      const V xm = splat<V>(x[m * a.row_stride]);
#pragma GCC unroll 4
      for (int j = 0; j < kTileVectors; ++j) acc[m][j] = madd(xm, row[j], acc[m][j]);
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

/// A part [begin, end) of the sum over k; empty: the block of C stays as it is.
struct Depth {
  int64_t begin, end;
};

/// Calls strip(rows, m) for strips of rows that cover M, `rows` a constant of the type std::integral_constant.
template <class Strip>
FULGURITE_INLINE void for_strips(int64_t M, const Strip& strip) {
  int64_t m = 0;
  for (; m + kTileRows <= M; m += kTileRows) strip(std::integral_constant<int, kTileRows>{}, m);
  for (; m + 4 <= M; m += 4) strip(std::integral_constant<int, 4>{}, m);
  for (; m + 2 <= M; m += 2) strip(std::integral_constant<int, 2>{}, m);
  for (; m < M; ++m) strip(std::integral_constant<int, 1>{}, m);
}

/// M rows of C; N is rounded up to whole panels, so C's rows hold pad_columns(N) elements. Every element of C is one chain
/// over k in order, whatever M is: a row's bits do not depend on its neighbours.
template <class T>
inline void gemm(int64_t M, int64_t N, int64_t K, MatrixA<T> a, PanelsB<T> b, T* c, int64_t ldc,
                 bool accumulate) {
  for (int64_t n = 0; n < N; n += kTileColumns<T>) {
    const T* const panel = b.data + n / kTileColumns<T> * b.panel_stride;
    for_strips(M, [&](auto rows, int64_t m) {
      gemm_tile<decltype(rows)::value>(
          MatrixA<T>{a.data + m * a.row_stride, a.row_stride, a.k_stride}, panel, K,
          c + m * ldc + n, ldc, accumulate);
    });
  }
}

/// The same over the part of k that each block needs: depth(m0, m1, n0, n1) for C[m0 … m1)[n0 … n1). What it leaves out must
/// be zeros of A or go unread.
template <class T, class DepthOf>
inline void gemm(int64_t M, int64_t N, MatrixA<T> a, PanelsB<T> b, T* c, int64_t ldc,
                 bool accumulate, const DepthOf& depth) {
  for (int64_t n = 0; n < N; n += kTileColumns<T>) {
    const T* const panel = b.data + n / kTileColumns<T> * b.panel_stride;
    for_strips(M, [&](auto rows, int64_t m) {
      constexpr int MR = decltype(rows)::value;
      const Depth k = depth(m, m + MR, n, n + kTileColumns<T>);
      if (k.begin >= k.end) return;
      gemm_tile<MR>(
          MatrixA<T>{a.data + m * a.row_stride + k.begin * a.k_stride, a.row_stride, a.k_stride},
          panel + k.begin * kTileColumns<T>, k.end - k.begin, c + m * ldc + n, ldc, accumulate);
    });
  }
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
