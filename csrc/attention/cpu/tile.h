// What forward and backward share: tasks as blocks of one head of one sequence, and one tile of query rows by keys with its
// kept part and its scores.
#pragma once

#include "attention/cpu/params.h"
#include "simd/kernel.h"
#include "simd/math.h"
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

template <class T>
FULGURITE_INLINE int64_t pad_lanes(int64_t n) {
  return (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

/// x·0 is NaN for an infinity or a NaN, and stays in the sum.
template <class T>
inline bool all_finite(const T* x, int64_t n) {
  using V = Native<T>;
  V zeros[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes<T> <= n; i += 4 * kLanes<T>)
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) zeros[k] = madd(load<V>(x + i + k * kLanes<T>), V{}, zeros[k]);
  T rest = 0;
  for (; i < n; ++i) rest += x[i] * 0;
  return sum((zeros[0] + zeros[1]) + (zeros[2] + zeros[3])) + rest == 0;
}

/// One block of rows of one head: head is a query head for query blocks and a key/value head for key blocks.
struct Block {
  int64_t b, head, index;  // index: of the block within its sequence
};

/// The block of a task. Tasks run over sequences, then heads, then blocks of the sequence.
FULGURITE_INLINE Block block_of(const AttentionParams& p, int64_t task, int64_t heads,
                                int64_t Sequence::* first, int64_t total) {
  int64_t low = 0, high = p.B;  // the last sequence whose first task is not beyond `task`
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (p.sequences[middle].*first * heads <= task ? low : high) = middle;
  }
  const int64_t begin = p.sequences[low].*first,
                end = low + 1 < p.B ? p.sequences[low + 1].*first : total;
  const int64_t within = task - begin * heads;
  return {low, within / (end - begin), within % (end - begin)};
}
FULGURITE_INLINE Block query_block_of(const AttentionParams& p, int64_t task) {
  return block_of(p, task, p.Hq, &Sequence::query_block, p.query_blocks);
}
FULGURITE_INLINE Block key_block_of(const AttentionParams& p, int64_t task) {
  return block_of(p, task, p.Hkv, &Sequence::key_block, p.key_blocks);
}
FULGURITE_INLINE Block split_of(const AttentionParams& p, int64_t task) {
  return block_of(p, task, p.Hkv, &Sequence::split_start, p.splits);
}
FULGURITE_INLINE int64_t block_count(int64_t n, int64_t block) { return (n + block - 1) / block; }

/// A packed block of keys of one key/value head.
struct PackedBlock {
  int64_t index;  // the task that packs it
  int64_t keys;   // packed keys before it
};
FULGURITE_INLINE PackedBlock packed_block(const AttentionParams& p, int64_t b, int64_t kv_head,
                                          int64_t block) {
  const Sequence& s = p.sequences[b];
  return {s.key_block * p.Hkv + kv_head * block_count(s.M, kKeyBlock) + block,
          s.packed_start * p.Hkv + kv_head * s.packed_keys + block * kKeyBlock};
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
  bool
      all_in_reach;  // by position every pair of [c0, c1) is kept; the mask, layout or bias may hide some
};

template <class T>
FULGURITE_INLINE Tile make_tile(const AttentionParams& p, const ScoreRule& rule, int64_t b,
                                int64_t h, int64_t query_block, int64_t key_block) {
  const Sequence& s = p.sequences[b];
  Tile t{b, h, query_block * s.query_rows, s.query_rows, key_block * kKeyBlock, kKeyBlock,
         0, 0, TileState::kSkip,           false};
  if (t.i0 + t.rows > s.N) t.rows = s.N - t.i0;
  if (t.j0 + t.columns > s.M) t.columns = s.M - t.j0;
  const KeyReach reach = rule.reach(t.i0, t.i0 + t.rows);
  const KeyRange& window = reach.window;
  const bool sinks = reach.sinks.meets(t.j0, t.j0 + t.columns);
  const int64_t low = sinks && reach.sinks.begin < window.begin ? reach.sinks.begin : window.begin;
  const int64_t high = sinks && reach.sinks.end > window.end ? reach.sinks.end : window.end;
  t.c0 = low <= t.j0 ? 0 : (low - t.j0) / kTileColumns<T> * kTileColumns<T>;
  t.c1 = high - t.j0 < t.columns ? high - t.j0 : t.columns;
  if (t.c0 >= t.c1) return t;
  t.state = rule.state(b, h, t.i0, t.i0 + t.rows, t.j0 + t.c0, t.j0 + t.c1);
  t.all_in_reach = rule.all_in_reach(t.i0, t.i0 + t.rows, t.j0 + t.c0, t.j0 + t.c1);
  return t;
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

/// The columns that each row of a partly hidden tile has in reach, counted from c0: products leave out the rest.
struct Spans {
  int begin[kMostQueryRows], end[kMostQueryRows];

  FULGURITE_INLINE Spans(const ScoreRule& rule, const Tile& t) {
    for (int64_t r = 0; r < t.rows; ++r) {
      const KeyReach reach = rule.reach(t.i0 + r);
      int64_t low = t.j0 + t.c1, high = 0;
      for (const KeyRange& range : {reach.sinks, reach.window}) {
        if (range.begin >= range.end) continue;
        low = range.begin < low ? range.begin : low;
        high = range.end > high ? range.end : high;
      }
      begin[r] = clamp(low - t.j0 - t.c0, t);
      end[r] = clamp(high - t.j0 - t.c0, t);
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

 private:
  static FULGURITE_INLINE int clamp(int64_t c, const Tile& t) {
    return static_cast<int>(c < 0 ? 0 : c > t.c1 - t.c0 ? t.c1 - t.c0 : c);
  }
};

/// products = A·B over the tile, A by query rows of depth K. What no row of a block has in reach is left as it was.
template <class T>
FULGURITE_INLINE void multiply_tile(const ScoreRule& rule, const Tile& t, int64_t K, MatrixA<T> a,
                                    const T* panels, T* products) {
  const PanelsB<T> b{panels + t.c0 * K, K * kTileColumns<T>};
  T* const c = products + t.c0;
  if (t.all_in_reach || K == 0)
    return gemm<T>(t.rows, t.c1 - t.c0, K, a, b, c, kScoreStride, false);
  const Spans spans(rule, t);
  gemm<T>(t.rows, t.c1 - t.c0, a, b, c, kScoreStride, false,
          [&](int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
            const Depth reach = spans.columns(r0, r1);
            return reach.begin < c1 && reach.end > c0 ? Depth{0, K} : Depth{0, 0};
          });
}

template <class T>
FULGURITE_INLINE void hide_out_of_reach(const KeyReach& reach, const Tile& t, T* scores) {
  if (reach.sinks.meets(t.j0 + t.c0, t.j0 + t.c1)) {
    for (int64_t c = t.c0; c < t.c1; ++c)
      if (!reach.has(t.j0 + c)) scores[c] = kHidden<T>;
    return;
  }
  const int64_t begin = reach.window.begin - t.j0, end = reach.window.end - t.j0;
  for (int64_t c = t.c0; c < t.c1 && c < begin; ++c) scores[c] = kHidden<T>;
  for (int64_t c = end > t.c0 ? end : t.c0; c < t.c1; ++c) scores[c] = kHidden<T>;
}

/// kHidden at the pairs of row r that are not kept by position, layout and mask, and at the columns that fill the last vector.
template <class T>
inline void hide(const ScoreRule& rule, const Tile& t, int64_t r, T* scores) {
  const int64_t padded = pad_lanes<T>(t.c1), i = t.i0 + r;
  for (int64_t c = t.c1; c < padded; ++c) scores[c] = kHidden<T>;
  if (t.state == TileState::kFull) return;
  if (!t.all_in_reach) hide_out_of_reach(rule.reach(i), t, scores);
  if (rule.layout.data)
    for (int64_t c = t.c0; c < t.c1; ++c)
      if (!rule.in_layout(t.b, t.h, i, t.j0 + c)) scores[c] = kHidden<T>;
  if (rule.mask.data) {
    const bool* const mask =
        static_cast<const bool*>(rule.mask.data) + rule.mask.offset(t.b, t.h, i, t.j0);
    for (int64_t c = t.c0; c < t.c1; ++c)
      if (!mask[c * rule.mask.strides[3]]) scores[c] = kHidden<T>;
  }
}

/// scores −= slope·|i' − j|
template <class T>
inline void add_alibi(const AttentionParams& p, const ScoreRule& rule, const Tile& t, int64_t r,
                      T* scores) {
  const T slope = static_cast<const T*>(p.alibi_slopes)[t.b * p.alibi_batch_stride + t.h];
  const int64_t center = t.i0 + r + rule.shift - t.j0;
  for (int64_t c = t.c0; c < t.c1; ++c)
    scores[c] -= slope * static_cast<T>(c < center ? center - c : c - center);
}

/// s becomes scale·s, softcapped, plus add(c); slope ≠ null receives the derivative of the softcap, 1 − tanh².
template <class T, class Add>
FULGURITE_INLINE void scale_row(const AttentionParams& p, const Tile& t, T* scores, T* slope,
                                const Add& add) {
  using V = Native<T>;
  const T scale = static_cast<T>(p.scale), cap = static_cast<T>(p.softcap);
  for (int64_t c = t.c0; c < t.c1; c += kLanes<T>) {
    V s = load<V>(scores + c) * scale;
    if (cap > 0) {
      const V u = tanh(s / cap);
      if (slope) store(slope + c, 1 - u * u);
      s = cap * u;
    }
    store(scores + c, add(c, s));
  }
}

/// Products of row r become its scores, kHidden where a pair is not kept: also where the bias is −inf, whatever the product
/// was.
template <class T>
inline void score_row(const AttentionParams& p, const ScoreRule& rule, const Tile& t, int64_t r,
                      T* scores, T* slope) {
  using V = Native<T>;
  if (p.plain_scores) return hide(rule, t, r, scores);
  if (rule.bias.data) {
    with_storage_beside<T>(rule.bias_dtype, [&](auto storage) {
      using S = decltype(storage);
      const int64_t step = rule.bias.strides[3];
      const S* const bias =
          static_cast<const S*>(rule.bias.data) + rule.bias.offset(t.b, t.h, t.i0 + r, t.j0);
      scale_row(p, t, scores, slope, [&](int64_t c, V s) {
        const V add = load_strided<V>(bias + c * step, step, t.c1 - c);
        return select(add == kHidden<T>, splat<V>(kHidden<T>), s + add);
      });
    });
  } else {
    scale_row(p, t, scores, slope, [](int64_t, V s) { return s; });
  }
  if (p.alibi_slopes) add_alibi(p, rule, t, r, scores);
  hide(rule, t, r, scores);
}

/// The scores of the tile. query: rows of `ld` elements; key: packed Kᵀ.
template <class T>
inline void score_tile(const AttentionParams& p, const ScoreRule& rule, const Tile& t,
                       const T* query, int64_t ld, const T* key, T* scores, T* slope) {
  multiply_tile<T>(rule, t, p.D, {query, ld, 1}, key, scores);
  for (int64_t r = 0; r < t.rows; ++r)
    score_row(p, rule, t, r, scores + r * kScoreStride, slope ? slope + r * kScoreStride : nullptr);
}

/// Sets x to 0 where the pair's keep bit is 0 and multiplies the rest by 1/(1 − p), for row r of the tile.
template <class T>
inline void drop(const AttentionParams& p, const Tile& t, int64_t r, T* x) {
  using U = Vec<uint64_t, 4>;
  const T keep = static_cast<T>(p.dropout.inverse_keep);
  for (int64_t c = t.c0; c < t.c1;
       c += 16) {  // c0 and j0 are multiples of 4: 16 keys are 4 counters
    U words[4];
    const uint64_t group = static_cast<uint64_t>(t.j0 + c) / 4;
    p.dropout.words(t.b, t.h, t.i0 + r, U{group, group + 1, group + 2, group + 3}, words);
    for (int64_t k = 0; k < 16 && c + k < t.c1; ++k)
      x[c + k] = words[k % 4][k / 4] < p.dropout.threshold ? T(0) : x[c + k] * keep;
  }
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
FULGURITE_INLINE void accumulate_tile(const ScoreRule& rule, const Tile& t, bool queries_are_rows,
                                      bool finite, MatrixA<T> a, PanelsB<T> b, int64_t N, T* c,
                                      int64_t ldc) {
  const int64_t columns = t.c1 - t.c0;
  const int64_t M = queries_are_rows ? t.rows : columns, K = queries_are_rows ? columns : t.rows;
  if (t.state == TileState::kPartial && !finite)
    return careful_gemm(rule, t, queries_are_rows, a, b, N, c, ldc);
  if (t.all_in_reach) return gemm<T>(M, N, K, a, b, c, ldc, true);
  const Spans spans(rule, t);
  gemm<T>(M, N, a, b, c, ldc, true, [&](int64_t m0, int64_t m1, int64_t, int64_t) {
    return queries_are_rows ? spans.columns(m0, m1) : spans.rows(t.rows, m0, m1);
  });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
