// What forward and backward share on one tile of query rows by keys: its kept part, its scores, and the careful product
// that keeps NaN and Inf of hidden pairs out.
#pragma once

#include "attention/cpu/params.h"
#include "simd/math.h"
#include "simd/pack.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

inline constexpr int64_t kScoreStride = kKeyBlock;  // row stride of a tile of scores

/// Hands out aligned pieces of a task's scratch memory; run with null it measures.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t n) {
    T* const p = reinterpret_cast<T*>(base_ + used_);
    used_ += (n * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return p;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

/// Runs visitor(S{}) for the storage type S of dtype.
template <class Visitor>
FULGURITE_INLINE void with_storage(Dtype dtype, const Visitor& visitor) {
  switch (dtype) {
    case Dtype::kFloat64: return visitor(double{});
    case Dtype::kFloat32: return visitor(float{});
    case Dtype::kBFloat16: return visitor(BFloat16{});
    case Dtype::kFloat16: return visitor(Half{});
  }
}

/// Rows [i, …) of head (b, h).
template <class S>
FULGURITE_INLINE Strided<S> rows_of(const Tensor4& t, int64_t b, int64_t h, int64_t i) {
  return {static_cast<const S*>(t.data) + b * t.strides[0] + h * t.strides[1] + i * t.strides[2], t.strides[2], t.strides[3]};
}

template <class T>
FULGURITE_INLINE int64_t pad_lanes(int64_t n) {
  return (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

template <class T>
inline bool all_finite(const T* x, int64_t n) {
  using V = Native<T>;
  constexpr T kLargest = sizeof(T) == 8 ? static_cast<T>(1.7976931348623157e308) : static_cast<T>(3.4028234663852886e38f);
  IntOf<V> bad{};
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) bad |= ~(abs(load<V>(x + i)) <= kLargest);
  for (; i < n; ++i) bad[0] |= x[i] - x[i] == 0 ? 0 : -1;
  for (int lane = 0; lane < kLanes<T>; ++lane)
    if (bad[lane]) return false;
  return true;
}

/// Query rows [i0, i0 + rows) of head h against keys [j0, j0 + columns) of its key/value head. Only columns [c0, c1) can
/// be kept; c0 is the start of a panel.
struct Tile {
  int64_t b, h, i0, rows, j0, columns, c0, c1;
  TileState state;
};

template <class T>
FULGURITE_INLINE Tile make_tile(const AttentionParams& p, int64_t b, int64_t h, int64_t query_block, int64_t key_block) {
  Tile t{b, h, query_block * kQueryBlock, kQueryBlock, key_block * kKeyBlock, kKeyBlock, 0, 0, TileState::kSkip};
  if (t.i0 + t.rows > p.N) t.rows = p.N - t.i0;
  if (t.j0 + t.columns > p.M) t.columns = p.M - t.j0;
  const KeyRange reach = p.rule.keys(t.i0, t.i0 + t.rows);
  const int64_t low = reach.begin - t.j0, high = reach.end - t.j0;
  t.c0 = low <= 0 ? 0 : low / kTileColumns<T> * kTileColumns<T>;
  t.c1 = high < t.columns ? high : t.columns;
  if (t.c0 < t.c1) t.state = p.rule.state(b, h, t.i0, t.i0 + t.rows, t.j0 + t.c0, t.j0 + t.c1);
  return t;
}

/// −inf at the pairs of row r that are not kept, and at the columns that fill up the last vector.
template <class T>
inline void hide(const AttentionParams& p, const Tile& t, int64_t r, T* scores) {
  constexpr T kHidden = static_cast<T>(-__builtin_inf());
  const int64_t padded = pad_lanes<T>(t.c1);
  for (int64_t c = t.c1; c < padded; ++c) scores[c] = kHidden;
  if (t.state == TileState::kFull) return;
  const KeyRange range = p.rule.keys(t.i0 + r);
  for (int64_t c = t.c0; c < t.c1 && t.j0 + c < range.begin; ++c) scores[c] = kHidden;
  const int64_t end = range.end - t.j0 > t.c0 ? range.end - t.j0 : t.c0;
  for (int64_t c = end; c < t.c1; ++c) scores[c] = kHidden;
  if (!p.rule.mask) return;
  const int64_t step = p.rule.mask_strides[3];
  const bool* const mask = p.rule.mask_row(t.b, t.h, t.i0 + r) + t.j0 * step;
  for (int64_t c = t.c0; c < t.c1; ++c)
    if (!mask[c * step]) scores[c] = kHidden;
}

/// s_ij = scale·(q_i·k_j), −inf where the pair is not kept. query: rows of `ld` elements; key: packed Kᵀ.
template <class T>
inline void score_tile(const AttentionParams& p, const Tile& t, const T* query, int64_t ld, const T* key, T* scores) {
  using V = Native<T>;
  gemm<T>(t.rows, t.c1 - t.c0, p.D, {query, ld, 1}, {key + t.c0 * p.D, p.D * kTileColumns<T>}, scores + t.c0, kScoreStride, false);
  const T scale = static_cast<T>(p.scale);
  for (int64_t r = 0; r < t.rows; ++r) {
    T* const row = scores + r * kScoreStride;
    for (int64_t c = t.c0; c < t.c1; c += kLanes<T>) store(row + c, load<V>(row + c) * scale);
    hide(p, t, r, row);
  }
}

/// C[m][n] += Σ over kept pairs of A·B, pair by pair: the product for tiles that hide some pair and whose B has a NaN or
/// Inf, which 0·B would let through. `queries_are_rows`: m runs over queries and k over keys, else the other way round.
template <class T>
inline void careful_gemm(const AttentionParams& p, const Tile& t, bool queries_are_rows, MatrixA<T> a, PanelsB<T> b, int64_t N, T* c, int64_t ldc) {
  const int64_t columns = t.c1 - t.c0;
  const int64_t rows = queries_are_rows ? t.rows : columns, depth = queries_are_rows ? columns : t.rows;
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t k = 0; k < depth; ++k) {
      const int64_t query = queries_are_rows ? m : k, key = t.c0 + (queries_are_rows ? k : m);
      if (!p.rule.kept(t.b, t.h, t.i0 + query, t.j0 + key)) continue;
      const T x = a.data[m * a.row_stride + k * a.k_stride];
      for (int64_t n = 0; n < N; ++n)
        c[m * ldc + n] += x * b.data[n / kTileColumns<T> * b.panel_stride + k * kTileColumns<T> + n % kTileColumns<T>];
    }
}

/// C += A·B over the kept pairs of the tile.
template <class T>
FULGURITE_INLINE void accumulate_tile(const AttentionParams& p, const Tile& t, bool queries_are_rows, bool finite, MatrixA<T> a, PanelsB<T> b,
                                      int64_t N, T* c, int64_t ldc) {
  if (t.state == TileState::kPartial && !finite) return careful_gemm(p, t, queries_are_rows, a, b, N, c, ldc);
  const int64_t columns = t.c1 - t.c0;
  gemm<T>(queries_are_rows ? t.rows : columns, N, queries_are_rows ? columns : t.rows, a, b, c, ldc, true);
}

/// One contiguous row of n results, scaled, rounded once to the storage type.
template <class S, class T>
inline void store_row(S* to, const T* from, int64_t n, T scale) {
  using V = Native<T>;
  int64_t c = 0;
  for (; c + kLanes<T> <= n; c += kLanes<T>) store_as(to + c, load<V>(from + c) * scale);
  if (c < n) store_first(to + c, load<V>(from + c) * scale, n - c);
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
