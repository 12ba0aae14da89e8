// Products of few rows with a B that is read where it stands (unpacked.h).
//
// Reads: A as operands; B of the storage type, its rows or its columns contiguous.
// Writes: C, or adds to it.
// Task: none of its own: kernels call it within theirs.
// Order of sums: one chain over all of the depth for each element, as with packed panels (microkernel.h).

#include "simd/unpacked.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// NV vectors of columns of a B with contiguous rows, `n` columns being left.
template <int MR, int NV, class T, class S>
FULGURITE_INLINE void multiply_rows(MatrixA<T> a, Strided<S> b, int64_t K, int64_t n,
                                    Accumulate<T>* c, int64_t ldc, bool accumulate) {
  constexpr int W = kLanes<Accumulate<T>>;
  Native<Accumulate<T>> acc[MR][NV] = {};
  const T* x = a.data;
  const S* row = b.data;
  for (int64_t k = 0; k < K; k += kStep<T>, x += a.step_stride, row += kStep<T> * b.row_stride) {
    for (int i = 0; i < kStep<T>; ++i) prefetch_row(row + (kRowsAhead + i) * b.row_stride, NV * W);
    const bool whole = k + kStep<T> <= K && n >= NV * W;
    Steps<T> step[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j)
      step[j] = bit_cast<Steps<T>>(
          whole ? load_whole_rows_step<T>(row + j * W, b.row_stride)
                : load_rows_step<T>(row + j * W, b.row_stride, 1, k, K, n - j * W));
#pragma GCC unroll 6
    for (int m = 0; m < MR; ++m) {
      const Steps<T> xm = splat_step(x + m * a.row_stride);
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) acc[m][j] = add_products<T>(xm, step[j], acc[m][j]);
    }
  }
  store_chain<MR, NV, T>(acc, c, ldc, accumulate);
}

/// acc += A·B for `count` steps that load_transposed has in registers.
template <int MR, class T, class S, class V, int W>
FULGURITE_INLINE void multiply_turned(const T* a, int64_t lda, const V (&square)[W], int count,
                                      Native<Accumulate<T>> (&acc)[MR][1]) {
  constexpr int kSteps = kTurnedSteps<T, S>;
#pragma GCC unroll 32
  for (int i = 0; i < count; ++i) {
    const auto step = bit_cast<Steps<T>>(turned_step<T, S>(square[i / kSteps], i % kSteps));
#pragma GCC unroll 6
    for (int m = 0; m < MR; ++m)
      acc[m][0] = add_products<T>(splat_step(a + m * lda + i * kStep<T>), step, acc[m][0]);
  }
}

/// One vector of columns of a B with contiguous columns, `n` columns being left: `from` is Bᵀ.
template <int MR, class T, class S>
FULGURITE_INLINE void multiply_columns(MatrixA<T> a, Strided<S> from, int64_t K, int64_t n,
                                       Accumulate<T>* c, int64_t ldc, bool accumulate) {
  using V = TurnedMoves<T, S>;
  constexpr int W = kWidth<V>, kSteps = W * kTurnedSteps<T, S>;
  Native<Accumulate<T>> acc[MR][1] = {};
  const T* x = a.data;
  for (int64_t k = 0; k < K; k += kSteps * kStep<T>, x += kSteps * kStep<T>) {
    const Strided<S> part = from.columns_from(k);
    prefetch_below<W>(part);
    V square[W];
    load_transposed<T>(part, n, K - k, square);
    if (K - k >= kSteps * kStep<T>)
      multiply_turned<MR, T, S>(x, a.row_stride, square, kSteps, acc);
    else
      multiply_turned<MR, T, S>(x, a.row_stride, square, static_cast<int>(steps<T>(K - k)), acc);
  }
  store_chain<MR, 1, T>(acc, c, ldc, accumulate);
}

template <class T, class S>
void multiply_unpacked(int64_t M, int64_t N, int64_t K, MatrixA<T> a, Strided<S> b,
                       Accumulate<T>* c, int64_t ldc, bool accumulate) {
  constexpr int W = kLanes<Accumulate<T>>;
  if constexpr (kFewRows == 0) return;
  const bool rows = b.column_stride == 1;
  for (int64_t n = 0; n < N;) {
    const bool panel = rows && N - n >= kPanelColumns<T>;
    const Strided<S> from = b.columns_from(n);
    for_strips(M, [&](auto count, int64_t m) {
      constexpr int MR = decltype(count)::value;
      const MatrixA<T> strip{a.data + m * a.row_stride, a.row_stride, a.step_stride};
      Accumulate<T>* const to = c + m * ldc + n;
      if (panel)
        multiply_rows<MR, kPanelVectors>(strip, from, K, N - n, to, ldc, accumulate);
      else if (rows)
        multiply_rows<MR, 1>(strip, from, K, N - n, to, ldc, accumulate);
      else
        multiply_columns<MR>(strip, from.transposed(), K, N - n, to, ldc, accumulate);
    });
    n += panel ? kPanelColumns<T> : W;
  }
}

#define FULGURITE_UNPACKED(T, S)                                                           \
  template void multiply_unpacked<T, S>(int64_t, int64_t, int64_t, MatrixA<T>, Strided<S>, \
                                        Accumulate<T>*, int64_t, bool);
#if FULGURITE_PAIR_PRODUCTS
FULGURITE_UNPACKED(BFloat16, BFloat16)
#else
#if FULGURITE_FLOAT64
FULGURITE_UNPACKED(double, double)
#endif
FULGURITE_UNPACKED(float, float)
FULGURITE_UNPACKED(float, BFloat16)
FULGURITE_UNPACKED(float, Half)
#endif
#undef FULGURITE_UNPACKED

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
