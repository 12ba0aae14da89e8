// The end of a chain of products whose sum is a result: C goes from registers to the storage type, rounded once.
//
//   to[m][n] = sums[m][n] + Σ_k A[m][k] · B[k][n]        sums: the chain so far, if it has begun
#pragma once

#include "simd/gemm.h"
#include "simd/kernel.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// MR rows by up to NV vectors of columns, `n` columns being left; sums may be null.
template <int MR, int NV, class T, class S>
FULGURITE_INLINE void store_microtile(MatrixA<T> a, Panel<T> b, int64_t steps,
                                      const Accumulate<T>* sums, int64_t ld_sums, S* to,
                                      int64_t ld_to, int64_t n) {
  using V = Native<Accumulate<T>>;
  constexpr int W = kWidth<V>;
  if constexpr (NV > 1)
    if (n <= (NV - 1) * W)
      return store_microtile<MR, NV - 1>(a, b, steps, sums, ld_sums, to, ld_to, n);
  V acc[MR][NV] = {};
  multiply_panel(a, b, steps, acc);
#pragma GCC unroll 6
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      const V sum = sums ? load<V>(sums + m * ld_sums + j * W) + acc[m][j] : acc[m][j];
      store_up_to(to + m * ld_to + j * W, sum, n - j * W);
    }
}

/// N columns of `to` are written, and `sums` may be.
template <class T, class S>
inline void gemm_store(int64_t M, int64_t N, int64_t steps, MatrixA<T> a, PanelsB<T> b,
                       Accumulate<T>* sums, int64_t ld_sums, bool accumulate, S* to,
                       int64_t ld_to) {
#if FULGURITE_TILE_PRODUCTS
  gemm<T>(M, N, steps, a, b, sums, ld_sums, accumulate);
  for (int64_t m = 0; m < M; ++m) store_row(to + m * ld_to, sums + m * ld_sums, N);
#else
  for (int64_t n = 0; n < N; n += kPanelColumns<T>)
    for_strips(M, [&](auto rows, int64_t m) {
      store_microtile<decltype(rows)::value, kPanelVectors>(
          MatrixA<T>{a.data + m * a.row_stride, a.row_stride, a.step_stride}, panel_of(b, n), steps,
          accumulate ? sums + m * ld_sums + n : nullptr, ld_sums, to + m * ld_to + n, ld_to, N - n);
    });
#endif
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
