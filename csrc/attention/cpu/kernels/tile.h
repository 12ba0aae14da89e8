// What forward and backward share: one tile of query rows by keys with its kept part.
#pragma once

#include "attention/cpu/kernels/blocks.h"
#include "simd/gemm.h"
#include "simd/kernel.h"
#include "simd/pack.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

inline constexpr int64_t kScoreStride = kKeyBlock;  // row stride of a tile of scores
template <class T>
inline constexpr T kHidden =
    static_cast<T>(-__builtin_inf());  // the score of a pair that is not kept

/// Runs visitor(S{}) for a tensor beside queries that are summed in T: of their dtype, or float32.
template <class T, class Visitor>
FULGURITE_INLINE void with_storage_beside(Dtype dtype, const Visitor& visitor) {
  if (dtype == Dtype::kFloat32) return visitor(float{});
  if constexpr (sizeof(T) == 8) return visitor(double{});
  if constexpr (sizeof(T) == 4)
    return dtype == Dtype::kBFloat16 ? visitor(BFloat16{}) : visitor(Half{});
}

/// Rows [i, …) of head (b, h).
template <class S>
FULGURITE_INLINE Strided<S> rows_of(const Tensor4& t, int64_t b, int64_t h, int64_t i) {
  return {static_cast<const S*>(t.data) + b * t.strides[0] + h * t.strides[1] + i * t.strides[2],
          t.strides[2], t.strides[3]};
}
template <class S>
FULGURITE_INLINE S* row_of(const Output4& t, int64_t b, int64_t h, int64_t i) {
  return static_cast<S*>(t.data) + b * t.strides[0] + h * t.strides[1] + i * t.strides[2];
}

/// x·0 is NaN for an infinity or a NaN, and stays in the sum.
template <class E>
inline bool all_finite(const E* x, int64_t n) {
  using T = Accumulate<E>;
  using V = Native<T>;
  V zeros[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes<T> <= n; i += 4 * kLanes<T>)
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) zeros[k] = madd(load_as<V>(x + i + k * kLanes<T>), V{}, zeros[k]);
  T rest = 0;
  for (; i < n; ++i) rest += to_accumulate(x[i]) * 0;
  return sum((zeros[0] + zeros[1]) + (zeros[2] + zeros[3])) + rest == 0;
}

/// The rule of sequence b.
FULGURITE_INLINE ScoreRule rule_of(const AttentionParams& p, int64_t b) {
  ScoreRule rule = p.rule;
  rule.M = p.sequences[b].M;
  rule.shift = p.bottom_right ? rule.M - p.sequences[b].N : 0;
  return rule;
}

/// Query rows [i0, i0 + rows) of head h against keys [j0, j0 + columns). Only columns [c0, c1) can be kept; c0 is the start
/// of a panel.
struct Tile {
  int64_t b, h, i0, rows, j0, columns, c0, c1;
  TileState state;
  // By position every pair of [c0, c1) is kept; the mask, layout or bias may hide some.
  bool all_in_reach;
};

template <class T>
FULGURITE_INLINE Tile make_tile(const AttentionParams& p, const ScoreRule& rule, int64_t b,
                                int64_t h, int64_t query_block, int64_t key_block) {
  const Sequence& s = p.sequences[b];
  Tile t{b, h, query_block * s.query_rows, s.query_rows, key_block * kKeyBlock, kKeyBlock,
         0, 0, TileState::kSkip,           false};
  if (t.i0 + t.rows > s.N) t.rows = s.N - t.i0;
  if (t.j0 + t.columns > s.M) t.columns = s.M - t.j0;
  const KeyRange keys = rule.reach(t.i0, t.i0 + t.rows).hull(t.j0, t.j0 + t.columns);
  t.c0 = (keys.begin - t.j0) / kPanelColumns<T> * kPanelColumns<T>;
  t.c1 = keys.end - t.j0;
  if (t.c0 >= t.c1) return t;
  t.state = rule.state(b, h, t.i0, t.i0 + t.rows, t.j0 + t.c0, t.j0 + t.c1);
  t.all_in_reach = rule.all_in_reach(t.i0, t.i0 + t.rows, t.j0 + t.c0, t.j0 + t.c1);
  return t;
}

/// The strip of a tile that begins with its row r0, with the columns that its rows alone have in reach.
template <class T>
FULGURITE_INLINE Tile strip_of(const ScoreRule& rule, const Tile& t, int64_t r0) {
  Tile s = t;
  s.i0 += r0;
  s.rows = t.rows - r0 < kStripRows ? t.rows - r0 : kStripRows;
  if (t.all_in_reach) return s;
  const KeyRange keys = rule.reach(s.i0, s.i0 + s.rows).hull(t.j0 + t.c0, t.j0 + t.c1);
  s.c0 = (keys.begin - t.j0) / kPanelColumns<T> * kPanelColumns<T>;
  s.c1 = keys.end - t.j0;
  if (s.c0 >= s.c1) {
    s.state = TileState::kSkip;
    return s;
  }
  s.all_in_reach = rule.all_in_reach(s.i0, s.i0 + s.rows, t.j0 + s.c0, t.j0 + s.c1);
  if (s.all_in_reach && !rule.mask.data && !rule.layout.data && !rule.bias.data)
    s.state = TileState::kFull;
  return s;
}

/// How many tiles a task met and skipped: what `explain` reports.
class TileTally {
 public:
  FULGURITE_INLINE bool skips(const Tile& t) {
    ++seen_;
    skipped_ += t.state == TileState::kSkip;
    return t.state == TileState::kSkip;
  }
  FULGURITE_INLINE void add_to(const AttentionParams& p) const {
    if (!p.tiles_seen) return;
    __atomic_fetch_add(p.tiles_seen, seen_, __ATOMIC_RELAXED);
    __atomic_fetch_add(p.tiles_skipped, skipped_, __ATOMIC_RELAXED);
  }

 private:
  int64_t seen_ = 0, skipped_ = 0;
};

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
