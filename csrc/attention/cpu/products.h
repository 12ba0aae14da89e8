// Products over one tile that leave out what no query has in reach, and that let nothing through that a query does not keep.
#pragma once

#include "attention/cpu/tile.h"

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

/// products = A·B over the tile, A by query rows of depth K. What no row of a block has in reach is left as it was.
template <class T>
FULGURITE_INLINE void multiply_tile(const Tile& t, const Spans& spans, int64_t K, MatrixA<T> a,
                                    const T* panels, T* products) {
  const PanelsB<T> b{panels + t.c0 * K, K * kTileColumns<T>};
  T* const c = products + t.c0;
  if (t.all_in_reach || K == 0)
    return gemm<T>(t.rows, t.c1 - t.c0, K, a, b, c, kScoreStride, false);
  gemm<T>(t.rows, t.c1 - t.c0, a, b, c, kScoreStride, false,
          [&](int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
            const Depth reach = spans.columns(r0, r1);
            return reach.begin < c1 && reach.end > c0 ? Depth{0, K} : Depth{0, 0};
          });
}

/// C[m][n] += Σ over kept pairs of A·B, pair by pair: the product for tiles that hide some pair and whose B has a NaN or
/// Inf, which 0·B would let through. The same chains as gemm's without the zeros, so the same bits where all is finite.
/// `queries_are_rows`: m runs over queries and k over keys, else the other way round.
template <class T>
inline void careful_gemm(const ScoreRule& rule, const Tile& t, bool queries_are_rows, MatrixA<T> a,
                         PanelsB<T> b, int64_t N, T* c, int64_t ldc) {
  using V = Native<T>;
  const int64_t columns = t.c1 - t.c0;
  const int64_t rows = queries_are_rows ? t.rows : columns,
                depth = queries_are_rows ? columns : t.rows;
  for (int64_t m = 0; m < rows; ++m) {
    bool kept[kMostQueryRows > kKeyBlock ? kMostQueryRows : kKeyBlock];
    for (int64_t k = 0; k < depth; ++k) {
      const int64_t query = queries_are_rows ? m : k, key = t.c0 + (queries_are_rows ? k : m);
      kept[k] = rule.kept(t.b, t.h, t.i0 + query, t.j0 + key);
    }
    for (int64_t n = 0; n < N; n += kLanes<T>) {
      const T* const column = b.data + n / kTileColumns<T> * b.panel_stride + n % kTileColumns<T>;
      V acc{};
      for (int64_t k = 0; k < depth; ++k)
        if (kept[k])
          acc = madd(splat<V>(a.data[m * a.row_stride + k * a.k_stride]),
                     load<V>(column + k * kTileColumns<T>), acc);
      store(c + m * ldc + n, load<V>(c + m * ldc + n) + acc);
    }
  }
}

/// C += A·B over the kept pairs of the tile, whose hidden pairs are zeros of A.
template <class T>
FULGURITE_INLINE void accumulate_tile(const ScoreRule& rule, const Tile& t, const Spans& spans,
                                      bool queries_are_rows, bool finite, MatrixA<T> a,
                                      PanelsB<T> b, int64_t N, T* c, int64_t ldc) {
  const int64_t columns = t.c1 - t.c0;
  const int64_t M = queries_are_rows ? t.rows : columns, K = queries_are_rows ? columns : t.rows;
  if (t.state == TileState::kPartial && !finite)
    return careful_gemm(rule, t, queries_are_rows, a, b, N, c, ldc);
  if (t.all_in_reach) return gemm<T>(M, N, K, a, b, c, ldc, true);
  gemm<T>(M, N, a, b, c, ldc, true, [&](int64_t m0, int64_t m1, int64_t, int64_t) {
    return queries_are_rows ? spans.columns(m0, m1) : spans.rows(t.rows, m0, m1);
  });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
