// Attention of few queries over a long cache, contiguous or paged.
//
// The keys are cut into splits, so that one sequence keeps every core busy:
//   o_s, m_s, l_s per split (online_softmax.h)     m = max(sink, max_s m_s)     l = e^{sink − m} + Σ_s l_s·e^{m_s − m}
//   out = Σ_s o_s·e^{m_s − m} / l                  lse = m + log l
//
// Reads: queries, the cache and its pages, mask, sink and slopes; merge the splits' o, m and l.
// Writes: o, m and l of every split (acc, max, sum); merge out and lse.
// Task: one split of one key/value head for all queries of the head's group, so that the cache is read once; merge one sequence and
// key/value head.
// Order of sums: keys in order within a split, splits in order. Splits depend on the problem's size alone.

#include "attention/cpu/kernels/decode_stream.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class T>
struct DecodeScratch {
  T *query, *scores, *limit, *sums, *gathered;
  T *key, *value;  // a packed block; null where rows are streamed
  int64_t query_ld, value_ld, acc_ld;

  DecodeScratch(const DecodeParams& d, Arena& arena)
      : query_ld(pad_lanes<T>(d.attention.D)),
        value_ld(pad_lanes<T>(d.attention.Dv)),
        acc_ld(pad_columns<T>(d.attention.Dv)) {
    const bool packs = d.rows > kStreamRows;
    query = arena.take<T>(d.rows * query_ld);
    scores = arena.take<T>(kMostQueryRows * kScoreStride);
    limit = arena.take<T>(d.rows);
    sums = arena.take<T>(d.rows * kLanes<T>);
    gathered =
        arena.take<T>((packs ? kKeyBlock : kLanes<T>)*(query_ld > value_ld ? query_ld : value_ld));
    key = packs ? arena.take<T>(kKeyBlock * d.attention.D) : nullptr;
    value = packs ? arena.take<T>(kKeyBlock * acc_ld) : nullptr;
  }
};

/// Row r of a group is query r mod N of head first + r / N.
struct GroupRow {
  int64_t head, query;
};
FULGURITE_INLINE GroupRow group_row(const AttentionParams& p, const Block& split, int64_t r) {
  const int64_t N = p.sequences[split.b].N;
  return {split.head * p.group + r / N, r % N};
}

/// Packs a block of keys and values; whether every value is finite.
template <class S>
bool pack_block(const DecodeParams& d, const Block& split, const Tile& t,
                const DecodeScratch<Accumulate<S>>& w) {
  using T = Accumulate<S>;
  const AttentionParams& p = d.attention;
  gather<S>(d, p.key, split, t.j0, t.columns, p.D, w.gathered, w.query_ld);
  pack_transposed<T>(Strided<T>{w.gathered, w.query_ld, 1}, t.columns, p.D, w.key);
  gather<S>(d, p.value, split, t.j0, t.columns, p.Dv, w.gathered, w.value_ld);
  pack_rows<T>(Strided<T>{w.gathered, w.value_ld, 1}, t.columns, p.Dv, w.value);
  return all_finite(w.value, t.columns * w.acc_ld);
}

/// The keys of a block that some query has in reach, seen by no query in particular.
FULGURITE_INLINE Tile block_tile(const DecodeParams& d, const ScoreRule& rule, const Block& split,
                                 int64_t j0, int64_t keys) {
  const int64_t N = d.attention.sequences[split.b].N;
  Tile t{split.b, split.head * d.attention.group, 0, 0, j0, keys, 0, keys, TileState::kSkip, false};
  if (!rule.reach(0, N).meets(j0, j0 + keys)) return t;
  t.all_in_reach = rule.all_in_reach(0, N, j0, j0 + keys);
  t.state = t.all_in_reach && !rule.mask.data ? TileState::kFull : TileState::kPartial;
  return t;
}

/// The tile of row r0 + r of the group alone, for what looks at one row.
FULGURITE_INLINE Tile row_tile(const AttentionParams& p, const Block& split, const Tile& t,
                               int64_t r0, int64_t r) {
  const GroupRow row = group_row(p, split, r0 + r);
  Tile one = t;
  one.h = row.head;
  one.i0 = row.query - r;
  return one;
}

/// Products of the rows from r0 on become weights, and what was summed comes to the new maximum.
template <class T>
void weigh(const DecodeParams& d, const ScoreRule& rule, const Block& split, const Tile& t,
           int64_t r0, const OnlineSoftmax<T>& softmax) {
  const AttentionParams& p = d.attention;
  for (int64_t r = 0; r < t.rows; ++r)
    score_row<T>(p, rule, row_tile(p, split, t, r0, r), r, softmax.scores + r * kScoreStride,
                 nullptr);
  raise_maxima(p, t, softmax);
  exponentiate<T>(p, t, softmax, softmax.scores);
}

/// Few rows: the cache is used as it streams by.
template <class S>
void attend_streamed(const DecodeParams& d, const ScoreRule& rule, const Block& split, Tile t,
                     const DecodeScratch<Accumulate<S>>& w,
                     const OnlineSoftmax<Accumulate<S>>& softmax) {
  const AttentionParams& p = d.attention;
  t.rows = d.rows;
  stream_scores<S>(d, split, t, w.query, w.query_ld, w.gathered, softmax.scores);
  weigh(d, rule, split, t, 0, softmax);
  stream_values<S>(d, split, t, w.value_ld, w.gathered, softmax, [&](int64_t r, int64_t c) {
    const GroupRow row = group_row(p, split, r);
    return rule.kept(split.b, row.head, row.query, t.j0 + c);
  });
}

/// Many rows: the block is packed once for all of them.
template <class S>
void attend_packed(const DecodeParams& d, const ScoreRule& rule, const Block& split, Tile t,
                   const DecodeScratch<Accumulate<S>>& w, const OnlineSoftmax<Accumulate<S>>& all) {
  using T = Accumulate<S>;
  const AttentionParams& p = d.attention;
  const bool finite = pack_block<S>(d, split, t, w);
  const PanelsB<T> value{w.value, t.columns, w.acc_ld};
  for (int64_t r0 = 0; r0 < d.rows; r0 += kMostQueryRows) {
    t.rows = d.rows - r0 < kMostQueryRows ? d.rows - r0 : kMostQueryRows;
    const OnlineSoftmax<T> softmax = all.rows_from(r0);
    Tile all_columns = t;  // whether a pair is kept is asked row by row
    all_columns.all_in_reach = true;
    multiply_tile<T>(all_columns, Spans(rule, all_columns), p.D, w.query + r0 * w.query_ld,
                     w.query_ld, w.key, softmax.scores);
    weigh(d, rule, split, t, r0, softmax);
    if (t.state == TileState::kFull || finite) {
      gemm<T>(t.rows, p.Dv, t.c1, {softmax.scores, kScoreStride, 1}, value, softmax.acc,
              softmax.acc_ld, true);
      continue;
    }
    for (int64_t r = 0; r < t.rows; ++r) {
      Tile one = row_tile(p, split, t, r0, r);
      one.i0 += r;
      one.rows = 1;
      careful_gemm<T>(rule, one, true, {softmax.scores + r * kScoreStride, kScoreStride, 1}, value,
                      p.Dv, softmax.acc + r * softmax.acc_ld, softmax.acc_ld);
    }
  }
}

template <class S>
void decode_task(const DecodeParams& d, int64_t task, void* scratch) {
  using T = Accumulate<S>;
  Arena arena(scratch);
  const DecodeScratch<T> w(d, arena);
  const AttentionParams& p = d.attention;
  const Block split = key_block_of(p, task);
  const Sequence& s = p.sequences[split.b];
  const ScoreRule rule = rule_of(p, split.b);
  T* const acc = static_cast<T*>(d.acc) + task * d.rows * w.acc_ld;
  T* const max = static_cast<T*>(d.max) + task * d.rows;
  T* const sums = static_cast<T*>(d.sum) + task * d.rows;
  const OnlineSoftmax<T> softmax{w.scores, acc, max, w.limit, w.sums, w.acc_ld};
  for (int64_t r = 0; r < d.rows; ++r) start_row(p, softmax, r, kHidden<T>);
  for (int64_t r = 0; r < d.rows; r += s.N)
    pack_plain<T>(rows_of<S>(p.query, split.b, group_row(p, split, r).head, 0), s.N, p.D,
                  w.query + r * w.query_ld, w.query_ld);
  const int64_t begin = split.index * d.split_keys,
                end = s.M - begin < d.split_keys ? s.M : begin + d.split_keys;
  TileTally tally;
  for (int64_t j0 = begin; j0 < end; j0 += kKeyBlock) {
    Tile t = block_tile(d, rule, split, j0, end - j0 < kKeyBlock ? end - j0 : kKeyBlock);
    if (tally.skips(t)) continue;
    if (d.rows <= kStreamRows)
      attend_streamed<S>(d, rule, split, t, w, softmax);
    else
      attend_packed<S>(d, rule, split, t, w, softmax);
  }
  for (int64_t r = 0; r < d.rows; ++r) sums[r] = sum(load<Native<T>>(w.sums + r * kLanes<T>));
  tally.add_to(p);
}

/// The splits of one sequence and key/value head.
template <class S>
void merge_task(const DecodeParams& d, int64_t task, void* scratch) {
  using T = Accumulate<S>;
  using V = Native<T>;
  const AttentionParams& p = d.attention;
  const int64_t acc_ld = pad_columns<T>(p.Dv);
  T* const out = static_cast<T*>(scratch);
  const Block whole{task / p.Hkv, task % p.Hkv, 0};
  const Sequence& s = p.sequences[whole.b];
  const int64_t splits = ceil_div(s.M, d.split_keys),
                first = s.key_block * p.Hkv + whole.head * splits;
  for (int64_t r = 0; r < d.rows; ++r) {
    const GroupRow row = group_row(p, whole, r);
    const auto at = [&](int64_t split) { return (first + split) * d.rows + r; };
    const T *const maxima = static_cast<const T*>(d.max), *const sums =
                                                              static_cast<const T*>(d.sum);
    const T sink = p.sink ? static_cast<const T*>(p.sink)[row.head] : kHidden<T>;
    T max = sink;
    for (int64_t i = 0; i < splits; ++i)
      if (maxima[at(i)] > max) max = maxima[at(i)];
    const T base = max == kHidden<T> ? T(0) : max;
    T sum = exp_flushed(splat<V>(sink - base))[0];
    for (int64_t c = 0; c < acc_ld; c += kLanes<T>) store(out + c, V{});
    for (int64_t i = 0; i < splits; ++i) {
      if (sums[at(i)] == 0) continue;
      const T factor = exp_flushed(splat<V>(maxima[at(i)] - base))[0];
      const T* const acc = static_cast<const T*>(d.acc) + at(i) * acc_ld;
      sum += sums[at(i)] * factor;
      for (int64_t c = 0; c < acc_ld; c += kLanes<T>)
        store(out + c, load<V>(out + c) + load<V>(acc + c) * factor);
    }
    const bool empty = sum == 0;
    for (int64_t c = 0; c < acc_ld && !empty; c += kLanes<T>)
      store(out + c, load<V>(out + c) / sum);
    store_row(row_of<S>(p.out, whole.b, row.head, row.query), out, p.Dv, T(1));
    *row_of<T>(p.lse, whole.b, row.head, row.query) =
        empty ? kHidden<T> : base + static_cast<T>(__builtin_log(sum));
  }
}

}  // namespace

void attention_decode(const DecodeParams& d, int64_t task, void* scratch) {
  with_storage(d.attention.dtype, [&](auto s) { decode_task<decltype(s)>(d, task, scratch); });
}

void attention_decode_merge(const DecodeParams& d, int64_t task, void* scratch) {
  with_storage(d.attention.dtype, [&](auto s) { merge_task<decltype(s)>(d, task, scratch); });
}

void attention_decode_layout(const DecodeParams& d, DecodeLayout* layout) {
  with_storage(d.attention.dtype, [&](auto s) {
    using T = Accumulate<decltype(s)>;
    Arena arena(nullptr);
    const DecodeScratch<T> measure(d, arena);
    layout->acc_row = measure.acc_ld;
    layout->scratch = arena.used();
  });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
