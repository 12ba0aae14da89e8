// Products over one tile that leave out what no query has in reach, and that let nothing through that a query does not keep.
#pragma once

#include "attention/cpu/kernels/tile.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// The columns that each row of a tile has in reach, counted from c0: products leave out the rest. Made once per tile; empty
/// where all of them are in reach.
struct Spans {
  int begin[kMostQueryRows], end[kMostQueryRows];

  FULGURITE_INLINE Spans(const ScoreRule& rule, const Tile& t) {
    if (t.all_in_reach) return;
    const int64_t first = t.j0 + t.c0;
    for (int64_t r = 0; r < t.rows; ++r) {
      const KeyRange keys = rule.reach(t.i0 + r).hull(first, t.j0 + t.c1);
      begin[r] = static_cast<int>(keys.begin - first);
      end[r] = static_cast<int>(keys.end - first);
    }
  }
  /// The columns that some row of [r0, r1) has in reach.
  FULGURITE_INLINE Depth columns(int64_t r0, int64_t r1) const {
    Depth d{begin[r0], end[r0]};
    for (int64_t r = r0 + 1; r < r1; ++r) {
      d.begin = begin[r] < d.begin ? begin[r] : d.begin;
      d.end = end[r] > d.end ? end[r] : d.end;
    }
    return d;
  }
  /// The rows from the first to the last that has some column of [c0, c1) in reach.
  FULGURITE_INLINE Depth rows(int64_t rows, int64_t c0, int64_t c1) const {
    int64_t first = 0, last = rows;
    while (first < last && !(begin[first] < c1 && end[first] > c0)) ++first;
    while (first < last && !(begin[last - 1] < c1 && end[last - 1] > c0)) --last;
    return {first, last};
  }
};

/// Longest chain of additions in float32 and float64 along a head's width: wider heads are summed in pieces, else float32 is
/// less accurate than PyTorch's products from a width of 256 on. Pairs of bfloat16 have larger errors of their own.
template <class E>
inline constexpr int64_t kLongestChain = kStep<E> == 1 ? 128 : int64_t{1} << 16;

/// products = A·B over the tile, A by query rows of `ld` elements and depth K. What no row of a microtile has in reach is
/// left as it was.
template <class E>
FULGURITE_INLINE void multiply_tile(const Tile& t, const Spans& spans, int64_t K, const E* rows,
                                    int64_t ld, const E* panels, Accumulate<E>* products) {
  const int64_t depth = pad_depth<E>(K);
  Accumulate<E>* const c = products + t.c0;
  for (int64_t k0 = 0; k0 == 0 || k0 < K; k0 += kLongestChain<E>) {
    const int64_t piece = steps<E>(K - k0 < kLongestChain<E> ? K - k0 : kLongestChain<E>);
    const MatrixA<E> a{rows + k0, ld, kStep<E>};
    const PanelsB<E> b{panels + t.c0 * depth, depth, pad_columns<E>(t.columns) - t.c0, k0};
    if (t.all_in_reach || K == 0)
      gemm<E>(t.rows, t.c1 - t.c0, piece, a, b, c, kScoreStride, k0 > 0);
    else
      gemm<E>(t.rows, t.c1 - t.c0, a, b, c, kScoreStride, k0 > 0,
              [&](int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
                const Depth reach = spans.columns(r0, r1);
                return reach.begin < c1 && reach.end > c0 ? Depth{0, piece} : Depth{0, 0};
              });
  }
}

/// What fills one vector of E.
template <class E>
FULGURITE_INLINE void store_operand(E* to, const Native<Accumulate<E>> (&x)[kStep<E>]) {
  if constexpr (kStep<E> == 1)
    store(to, x[0]);
  else
    store(to, narrow_two<kLanes<Accumulate<E>>>(x[0], x[1]));
}

/// A tile of operands as the left side of a product along its columns.
template <class E>
FULGURITE_INLINE MatrixA<E> along_columns(const Tile& t, const E* tile) {
  return {tile + t.c0, kScoreStride, kStep<E>};
}
/// The same along its rows: transposed. Where a step is two elements, pairs of rows stand side by side.
template <class E>
FULGURITE_INLINE MatrixA<E> along_rows(const Tile& t, const E* tile) {
  return {tile + t.c0 * kStep<E>, kStep<E>, kStep<E> * kScoreStride};
}

/// Rows of a tile as operands along its columns; numbers are their own.
template <class E, class T>
FULGURITE_INLINE void narrow_for_columns(const Tile& t, const T* tile, E* to) {
  using V = Native<T>;
  if constexpr (!std::is_same_v<E, T>)
    for (int64_t r = 0; r < t.rows; ++r)
      for (int64_t c = t.c0; c < t.c1; c += 2 * kWidth<V>) {
        const T* const from = tile + r * kScoreStride + c;
        store_operand(to + r * kScoreStride + c, {load<V>(from), load<V>(from + kWidth<V>)});
      }
}
/// Rows of a tile as operands along its rows; numbers are their own.
template <class E, class T>
FULGURITE_INLINE void narrow_for_rows(const Tile& t, const T* tile, E* to) {
  using V = Native<T>;
  if constexpr (!std::is_same_v<E, T>)
    for (int64_t r = 0; r < t.rows; r += 2)
      for (int64_t c = t.c0; c < t.c1; c += kWidth<V>) {
        const T* const from = tile + r * kScoreStride + c;
        const V odd = r + 1 < t.rows ? load<V>(from + kScoreStride) : V{};
        store(to + r * kScoreStride + 2 * c, narrow_pairs<kWidth<V>>(load<V>(from), odd));
      }
}

/// Zeros what of a step's elements is not kept.
template <class E>
FULGURITE_INLINE Steps<E> mask_step(Steps<E> step, const bool* kept) {
  if constexpr (kStep<E> == 1) return kept[0] ? step : Steps<E>{};
  const uint32_t mask = (kept[0] ? 0xffffu : 0u) | (kept[kStep<E> - 1] ? 0xffff0000u : 0u);
  using Bits = Vec<uint32_t, static_cast<int>(sizeof(Steps<E>) / 4)>;
  return bit_cast<Steps<E>>(bit_cast<Bits>(step) & mask);
}

/// C[m][n] += Σ over kept pairs of A·B, row by row with a B of the row's own: the product for tiles that hide some pair and
/// whose B has a NaN or Inf, which 0·B would let through. Zeros in its place, so the same bits where all is finite.
/// `queries_are_rows`: m runs over queries and k over keys, else the other way round.
template <class E>
inline void careful_gemm(const ScoreRule& rule, const Tile& t, bool queries_are_rows, MatrixA<E> a,
                         PanelsB<E> b, int64_t N, Accumulate<E>* c, int64_t ldc) {
  constexpr int kElements = kStep<E>;
  constexpr int64_t kMostDepth = kMostQueryRows > kKeyBlock ? kMostQueryRows : kKeyBlock;
  const int64_t columns = t.c1 - t.c0, rows = queries_are_rows ? t.rows : columns,
                depth = queries_are_rows ? columns : t.rows;
  alignas(64) E kept_rows[kMostDepth * kPanelColumns<E>];
  for (int64_t m = 0; m < rows; ++m) {
    bool kept[kMostDepth + 1] = {};
    for (int64_t k = 0; k < depth; ++k) {
      const int64_t query = queries_are_rows ? m : k, key = t.c0 + (queries_are_rows ? k : m);
      kept[k] = rule.kept(t.b, t.h, t.i0 + query, t.j0 + key);
    }
    const MatrixA<E> row{a.data + m * a.row_stride, a.row_stride, a.step_stride};
    for (int64_t n = 0; n < N; n += kPanelColumns<E>) {
      const Panel<E> panel = panel_of(b, n);
      const int64_t step_elements = panel.width * kElements;
      for (int64_t k = 0; k < steps<E>(depth); ++k)
        for (int64_t i = 0; i < step_elements; i += kElements * kLanes<Accumulate<E>>)
          store(kept_rows + k * step_elements + i,
                mask_step<E>(load<Steps<E>>(panel.data + k * step_elements + i),
                             kept + k * kElements));
      gemm<E>(1, N - n < panel.width ? N - n : panel.width, steps<E>(depth), row,
              {kept_rows, pad_depth<E>(depth), panel.width}, c + m * ldc + n, ldc, true);
    }
  }
}

/// C += A·B over the kept pairs of the tile, whose hidden pairs are zeros of A.
template <class E>
FULGURITE_INLINE void accumulate_tile(const ScoreRule& rule, const Tile& t, const Spans& spans,
                                      bool queries_are_rows, bool finite, MatrixA<E> a,
                                      PanelsB<E> b, int64_t N, Accumulate<E>* c, int64_t ldc) {
  const int64_t columns = t.c1 - t.c0;
  const int64_t M = queries_are_rows ? t.rows : columns, K = queries_are_rows ? columns : t.rows;
  // The last step along an odd number of keys may hold the key behind them, which is hidden.
  const bool reads_behind = queries_are_rows && steps<E>(K) * kStep<E> > K && t.c1 < t.columns;
  if ((t.state == TileState::kPartial || reads_behind) && !finite)
    return careful_gemm(rule, t, queries_are_rows, a, b, N, c, ldc);
  if (t.all_in_reach) return gemm<E>(M, N, steps<E>(K), a, b, c, ldc, true);
  gemm<E>(M, N, a, b, c, ldc, true, [&](int64_t m0, int64_t m1, int64_t, int64_t) {
    const Depth d = queries_are_rows ? spans.columns(m0, m1) : spans.rows(t.rows, m0, m1);
    return Depth{d.begin / kStep<E>, steps<E>(d.end)};
  });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
