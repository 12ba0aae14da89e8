// The products of linear attention's chunks, and its states, which stay packed as panels (simd/microkernel.h) for a whole head.
#pragma once

#include "simd/gemm.h"
#include "simd/kernel.h"
#include "simd/pack.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// Element (k, n) of panels of `depth` by `columns`, the latter padded.
template <class T>
FULGURITE_INLINE int64_t panel_index(int64_t k, int64_t n, int64_t depth, int64_t columns) {
  const int64_t base = n / kPanelColumns<T> * kPanelColumns<T>;
  return base * depth + k * panel_width<T>(base, columns) + n - base;
}

/// C = A·B, all of it.
template <class T>
FULGURITE_INLINE void multiply(int64_t M, int64_t N, int64_t K, MatrixA<T> a, PanelsB<T> b, T* c,
                               int64_t ldc) {
  gemm<T>(M, N, K, a, b, c, ldc, false);
}

/// C = A·B for the columns n < ends[m]; the others hold anything.
template <class T>
__attribute__((noinline)) void multiply_pairs(int64_t count, int64_t K, MatrixA<T> a, PanelsB<T> b,
                                              const int64_t* ends, T* c, int64_t ldc) {
  if (K == 0) return multiply(count, b.columns, K, a, b, c, ldc);
  gemm<T>(count, count, a, b, c, ldc, false, [=](int64_t, int64_t m1, int64_t n0, int64_t) {
    return Depth{0, n0 < ends[m1 - 1] ? K : 0};
  });
}

/// C += A·B where row m of A has numbers from begins[m] to ends[m] (null: from 0, to K), both rising with m, and zeros elsewhere.
/// `alone`: every row by itself, so that what B holds against those zeros is not even multiplied.
template <class T>
__attribute__((noinline)) void add_triangle(int64_t M, int64_t N, int64_t K, MatrixA<T> a,
                                            PanelsB<T> b, const int64_t* begins,
                                            const int64_t* ends, bool alone, T* c, int64_t ldc) {
  for (int64_t m = 0, count = alone ? 1 : M; m < M; m += count)
    gemm<T>(count, N, MatrixA<T>{a.data + m * a.row_stride, a.row_stride, a.step_stride}, b,
            c + m * ldc, ldc, true, [=](int64_t m0, int64_t m1, int64_t, int64_t) {
              return Depth{begins ? begins[m + m0] : 0, ends ? ends[m + m1 - 1] : K};
            });
}

/// A microtile of a state: to = factor·from + A·B, factors by row, or by column.
template <bool kByColumn, int MR, int NV, class T>
FULGURITE_INLINE void advance_tile(MatrixA<T> a, Panel<T> b, int64_t steps, const T* factors,
                                   const T* from, T* to) {
  using V = Native<T>;
  constexpr int W = kWidth<V>;
  V acc[MR][NV] = {};
  multiply_panel(a, b, steps, acc);
#pragma GCC unroll 6
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      const int64_t at = m * b.width + j * W;
      const V factor = kByColumn ? load<V>(factors + j * W) : splat<V>(factors[m]);
      store(to + at, madd(factor, load<V>(from + at), acc[m][j]));
    }
}

/// to = factors∘from + A·B for packed states of `rows` by `columns` (padded), B of `steps` along k; factors by row, or by column.
template <bool kByColumn, class T>
__attribute__((noinline)) void advance_state(int64_t rows, int64_t columns, int64_t steps,
                                             MatrixA<T> a, PanelsB<T> b, const T* factors,
                                             const T* from, T* to) {
  for (int64_t n = 0; n < columns; n += kPanelColumns<T>) {
    const Panel<T> panel = panel_of(b, n);
    for_strips(rows, [&](auto strip, int64_t m) {
      constexpr int MR = decltype(strip)::value;
      const MatrixA<T> strip_of{a.data + m * a.row_stride, a.row_stride, a.step_stride};
      const int64_t at = n * rows + m * panel.width;
      with_count<kPanelVectors>(panel.width / kLanes<T>, [&](auto vectors) {
        advance_tile<kByColumn, MR, decltype(vectors)::value>(
            strip_of, panel, steps, factors + (kByColumn ? n : m), from + at, to + at);
      });
    });
  }
}

/// Panels of `rows` by `columns` from those of `columns` by `rows`.
template <class T>
__attribute__((noinline)) void turn_state(const T* from, int64_t rows, int64_t columns, T* to) {
  using V = Native<T>;
  constexpr int W = kWidth<V>;
  for (int64_t c = 0; c < columns; c += W)
    for (int64_t r = 0; r < rows; r += W) {
      V square[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i)
        square[i] = c + i < columns
                        ? load<V>(from + packed_at<T>(c + i, r, columns, pad_columns<T>(rows)))
                        : V{};
      transpose<W / 2>(square);
      for (int i = 0; i < W && r + i < rows; ++i)
        store(to + packed_at<T>(r + i, c, rows, pad_columns<T>(columns)), square[i]);
    }
}

/// Rows of n numbers, zeros to the end of a vector.
template <class S, class T>
void stage_rows(Strided<S> from, int64_t rows, int64_t n, T* to, int64_t ld) {
  for (int64_t i = 0; i < rows; ++i)
    for_row<T>(from.data + i * from.row_stride, from.column_stride, n,
               [row = to + i * ld](int64_t c, Native<T> v) { store(row + c, v); });
}

/// to = from·(by[i]·scale), where `by` is given; rows of whole vectors.
template <class T>
void scale_rows(const T* from, int64_t rows, int64_t n, int64_t ld, const T* by, T scale, T* to) {
  using V = Native<T>;
  for (int64_t i = 0; i < rows; ++i) {
    const T factor = by ? by[i] * scale : scale;
    for (int64_t c = 0; c < n; c += kWidth<V>)
      store(to + i * ld + c, load<V>(from + i * ld + c) * factor);
  }
}

/// to = from∘by, rows of whole vectors.
template <class T>
void multiply_rows(const T* from, const T* by, int64_t rows, int64_t n, int64_t ld, T* to) {
  using V = Native<T>;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < n; c += kWidth<V>)
      store(to + i * ld + c, load<V>(from + i * ld + c) * load<V>(by + i * ld + c));
}

/// Whether n numbers, whole vectors, are all finite.
template <class T>
bool all_finite(const T* x, int64_t n) {
  using V = Native<T>;
  V zeros{};
  for (int64_t i = 0; i < n; i += kWidth<V>) zeros = madd(load<V>(x + i), V{}, zeros);
  return sum(zeros) == T(0);
}

/// Σ x·y over n, whole vectors.
template <class T>
T dot(const T* x, const T* y, int64_t n) {
  using V = Native<T>;
  V sums{};
  for (int64_t i = 0; i < n; i += kWidth<V>) sums = madd(load<V>(x + i), load<V>(y + i), sums);
  return sum(sums);
}

/// Σ x·y·z.
template <class T>
T dot(const T* x, const T* y, const T* z, int64_t n) {
  using V = Native<T>;
  V sums{};
  for (int64_t i = 0; i < n; i += kWidth<V>)
    sums = madd(load<V>(x + i) * load<V>(y + i), load<V>(z + i), sums);
  return sum(sums);
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
