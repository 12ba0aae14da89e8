// C (+)= A·B of any size: microkernel.h's strips, or AMX tiles where the set has them (tile_gemm.h).
#pragma once

#include "simd/microkernel.h"
#if FULGURITE_TILE_PRODUCTS
#include "simd/tile_gemm.h"
#endif

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// The part of k that each microtile needs: depth(m0, m1, n0, n1) for C[m0 … m1)[n0 … n1). What it leaves out must be zeros of A
/// or go unread. N is rounded up to whole vectors, so C's rows hold pad_columns(N) elements. Every element of C is one chain
/// over k in order, whatever M is: a row's bits do not depend on its neighbours.
template <class T, class DepthOf>
inline void gemm(int64_t M, int64_t N, MatrixA<T> a, PanelsB<T> b, Accumulate<T>* c, int64_t ldc,
                 bool accumulate, const DepthOf& depth) {
#if FULGURITE_TILE_PRODUCTS
  tile_gemm<Tiles>(M, N, a, b, c, ldc, accumulate, depth);
#else
  constexpr int W = kLanes<Accumulate<T>>;
  for (int64_t n = 0; n < N; n += kPanelColumns<T>)
    for_strips(M, [&](auto rows, int64_t m) {
      constexpr int MR = decltype(rows)::value;
      const Depth k = depth(m, m + MR, n, n + kPanelColumns<T>);
      if (k.begin >= k.end) return;
      gemm_vectors<MR>(ceil_div(N - n, W),
                       MatrixA<T>{a.data + m * a.row_stride + k.begin * a.step_stride, a.row_stride,
                                  a.step_stride},
                       panel_of(b, n, k.begin), k.end - k.begin, c + m * ldc + n, ldc, accumulate);
    });
#endif
}

/// The same over the whole depth, also where that is nothing: C becomes 0 then, or stays. A function of its own: inlined into a larger
/// one, the rows' addresses leave the registers, and the innermost loop loads them again.
template <class T>
__attribute__((noinline)) void gemm(int64_t M, int64_t N, int64_t steps, MatrixA<T> a, PanelsB<T> b,
                                    Accumulate<T>* c, int64_t ldc, bool accumulate) {
#if FULGURITE_TILE_PRODUCTS
  if (steps > 0)
    return gemm<T>(M, N, a, b, c, ldc, accumulate,
                   [steps](int64_t, int64_t, int64_t, int64_t) { return Depth{0, steps}; });
  for (int64_t m = 0; m < M && !accumulate; ++m)
    __builtin_memset(c + m * ldc, 0, sizeof(*c) * static_cast<size_t>(pad_columns<T>(N)));
#else
  constexpr int W = kLanes<Accumulate<T>>;
  for (int64_t n = 0; n < N; n += kPanelColumns<T>)
    for_strips(M, [&](auto rows, int64_t m) {
      gemm_vectors<decltype(rows)::value>(
          ceil_div(N - n, W), MatrixA<T>{a.data + m * a.row_stride, a.row_stride, a.step_stride},
          panel_of(b, n), steps, c + m * ldc + n, ldc, accumulate);
    });
#endif
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
