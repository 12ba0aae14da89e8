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

/// Rows of the accumulation type, `ld` apart, read to the end of a vector.
template <class T>
struct RowsOf {
  const T* data;
  int64_t ld;

  MatrixA<T> matrix() const { return {data, ld, 1}; }
  MatrixA<T> transposed() const { return {data, 1, ld}; }
  RowsOf from(int64_t i) const { return {data + i * ld, ld}; }
};

/// Rows of n numbers, zeros to the end of a vector.
template <class S, class T>
void stage_rows(Strided<S> from, int64_t rows, int64_t n, T* to, int64_t ld) {
  for (int64_t i = 0; i < rows; ++i)
    for_row<T>(from.data + i * from.row_stride, from.column_stride, n,
               [row = to + i * ld](int64_t c, Native<T> v) { store(row + c, v); });
}

/// Rows of n numbers: where they stand, if kernels can read them there, else a copy, zeros to the end of a vector.
template <class S, class T>
RowsOf<T> take_rows(Strided<S> from, int64_t rows, int64_t n, T* copy, int64_t ld) {
  if constexpr (std::is_same_v<S, T>)
    if (from.column_stride == 1 && n % kLanes<T> == 0) return {from.data, from.row_stride};
  stage_rows(from, rows, n, copy, ld);
  return {copy, ld};
}

/// Rows as an operand B: rows of one panel that lie without gaps are one already.
template <class T>
PanelsB<T> take_panels(RowsOf<T> from, int64_t rows, int64_t n, T* panels) {
  const int64_t columns = pad_columns<T>(n);
  if (columns <= kPanelColumns<T> && from.ld == columns) return {from.data, rows, columns};
  pack_rows<T>(Strided<T>{from.data, from.ld, 1}, rows, n, panels);
  return {panels, rows, columns};
}

/// Rows times by[i], where it is given, and `scale`, as an operand B.
template <class T>
PanelsB<T> pack_scaled(RowsOf<T> from, int64_t rows, int64_t n, const T* by, T scale, T* panels) {
  using V = Native<T>;
  const int64_t columns = pad_columns<T>(n);
  for (int64_t i = 0; i < rows; ++i) {
    const T factor = by ? by[i] * scale : scale;
    for (int64_t c = 0; c < columns; c += kWidth<V>)
      store(panels + packed_at<T>(i, c, rows, columns),
            load<V>(from.data + i * from.ld + c) * factor);
  }
  return {panels, rows, columns};
}

/// Asks for rows of n numbers that are read soon.
template <class S>
void prefetch_rows(Strided<S> from, int64_t rows, int64_t n) {
  constexpr int64_t kLine = 64 / sizeof(S);
  if (from.column_stride != 1) return;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < n; c += kLine)
      __builtin_prefetch(from.data + i * from.row_stride + c, 0, 2);
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
  constexpr int W = kLanes<T>;
  for (int64_t n = 0; n < b.columns; n += kPanelColumns<T>)
    for_strips(count, [&](auto rows, int64_t m) {
      constexpr int MR = decltype(rows)::value;
      const int64_t vectors = ceil_div(ends[m + MR - 1] - n, W);
      if (vectors <= 0) return;
      gemm_vectors<MR>(
          vectors < panel_width<T>(n, b.columns) / W ? vectors : panel_width<T>(n, b.columns) / W,
          MatrixA<T>{a.data + m * a.row_stride, a.row_stride, a.step_stride}, panel_of(b, n), K,
          c + m * ldc + n, ldc, false);
    });
}

/// C += A·B where row m of A has numbers from begins[m] to ends[m] (null: from 0, to K), both rising with m, and zeros
/// elsewhere. `alone`: every row by itself, so that what B holds against those zeros is not even multiplied.
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

/// to = factors∘from + A·B for packed states of `rows` by `columns` (padded), B of `steps` along k; factors by row, or by
/// column.
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

/// to = from·(by[i]·scale), where `by` is given; rows of whole vectors.
template <class T>
void scale_rows(RowsOf<T> from, int64_t rows, int64_t n, const T* by, T scale, T* to, int64_t ld) {
  using V = Native<T>;
  for (int64_t i = 0; i < rows; ++i) {
    const T factor = by ? by[i] * scale : scale;
    for (int64_t c = 0; c < n; c += kWidth<V>)
      store(to + i * ld + c, load<V>(from.data + i * from.ld + c) * factor);
  }
}

/// to = from∘by, rows of whole vectors; `by` has rows of ld as `to` has.
template <class T>
void multiply_rows(RowsOf<T> from, const T* by, int64_t rows, int64_t n, T* to, int64_t ld) {
  using V = Native<T>;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < n; c += kWidth<V>)
      store(to + i * ld + c, load<V>(from.data + i * from.ld + c) * load<V>(by + i * ld + c));
}

/// Whether rows of n numbers, read to the end of a vector, are all finite.
template <class T>
bool all_finite(RowsOf<T> x, int64_t rows, int64_t n) {
  using V = Native<T>;
  V zeros{};
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < n; c += kWidth<V>)
      zeros = madd(load<V>(x.data + i * x.ld + c), V{}, zeros);
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
