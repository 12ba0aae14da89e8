// Attention forward: tiles of queries by keys, softmax computed online, nothing of size N×M in memory.
//
// Per row, over the key tiles J in order (m starts at −inf, l and o at 0):
//   o = α·o + p·V_J        with α and p of online_softmax.h
// and at the end out = o/l, lse = m + log l. A row that keeps nothing has l = 0: out 0, lse −inf. A sink is a score without
// a value: m starts at sink_h and l at 1. Dropout acts on p·V only. Scores of other kinds are not normalised (activation.h).
// One task is one block of query rows of one head; K and V were packed once per key/value head.

#include "attention/cpu/activation.h"
#include "attention/cpu/online_softmax.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class T>
struct ForwardScratch : OnlineSoftmax<T> {
  T* query;
  int64_t query_ld;

  ForwardScratch(const AttentionParams& p, Arena& arena) : query_ld(pad_lanes<T>(p.D)) {
    this->acc_ld = pad_columns<T>(p.Dv);
    query = arena.take<T>(kMostQueryRows * query_ld);
    this->scores = arena.take<T>(kMostQueryRows * kScoreStride);
    this->acc = arena.take<T>(kMostQueryRows * this->acc_ld);
    this->max = arena.take<T>(kMostQueryRows);
    this->sum = arena.take<T>(kMostQueryRows);
    this->rescale = arena.take<T>(kMostQueryRows);
  }
};

/// scores become a(s).
template <class T>
void activate(const AttentionParams& p, const Tile& t, ForwardScratch<T>& w) {
  using V = Native<T>;
  for (int64_t r = 0; r < t.rows; ++r)
    for (int64_t c = t.c0; c < t.c1; c += kLanes<T>) {
      T* const s = w.scores + r * kScoreStride + c;
      store(s, activation(p, load<V>(s)));
    }
}

template <class T>
void start(const AttentionParams& p, int64_t h, int64_t rows, ForwardScratch<T>& w) {
  const T sink = p.sink ? static_cast<const T*>(p.sink)[h] : kHidden<T>;
  for (int64_t r = 0; r < kMostQueryRows; ++r) {
    w.max[r] = sink;
    w.sum[r] = sink == kHidden<T> ? 0 : 1;
  }
  __builtin_memset(w.acc, 0, sizeof(T) * rows * w.acc_ld);
}

template <class S>
void finish(const AttentionParams& p, const Block& block, int64_t start_row, int64_t rows,
            const ForwardScratch<Accumulate<S>>& w) {
  using T = Accumulate<S>;
  using V = Native<T>;
  for (int64_t r = 0; r < rows; ++r) {
    T* const acc = w.acc + r * w.acc_ld;
    T lse = 0;
    if (p.score == ScoreKind::kSoftmax) {
      const bool empty = w.sum[r] == 0;
      for (int64_t d = 0; d < p.Dv; d += kLanes<T>)
        store(acc + d, empty ? V{} : load<V>(acc + d) / w.sum[r]);
      lse = empty ? kHidden<T> : w.max[r] + static_cast<T>(__builtin_log(w.sum[r]));
    }
    store_row(row_of<S>(p.out, block.b, block.head, start_row + r), acc, p.Dv, T(1));
    *row_of<T>(p.lse, block.b, block.head, start_row + r) = lse;
  }
}

template <class S>
void forward_task(const AttentionParams& p, int64_t task, void* scratch) {
  using T = Accumulate<S>;
  Arena arena(scratch);
  ForwardScratch<T> w(p, arena);
  const Block q = query_block_of(p, task);
  const Sequence& s = p.sequences[q.b];
  const ScoreRule rule = rule_of(p, q.b);
  const int64_t i0 = q.index * s.query_rows,
                rows = s.N - i0 < s.query_rows ? s.N - i0 : s.query_rows;
  pack_plain<T>(rows_of<S>(p.query, q.b, q.head, s.query_start + i0), rows, p.D, w.query,
                w.query_ld);
  start(p, q.head, rows, w);
  TileTally tally;
  for (int64_t block = 0; block < ceil_div(s.M, kKeyBlock); ++block) {
    const Tile t = make_tile<T>(p, rule, q.b, q.head, q.index, block);
    if (tally.skips(t)) continue;
    const PackedBlock packed = packed_block(p, q.b, q.head / p.group, block);
    const T* const key = static_cast<const T*>(p.key_transposed) + packed.keys * p.D;
    const T* const value = static_cast<const T*>(p.value_rows) + packed.keys * w.acc_ld;
    const Spans spans(rule, t);
    score_tile<T>(p, rule, t, spans, w.query, w.query_ld, key, w.scores, nullptr);
    if (p.score == ScoreKind::kSoftmax) {
      raise_maxima<T>(p, t, w);
      exponentiate<T>(p, t, w);
    } else {
      activate(p, t, w);
    }
    accumulate_tile<T>(
        rule, t, spans, true, p.value_finite[packed.index], {w.scores + t.c0, kScoreStride, 1},
        {value + t.c0 * kTileColumns<T>, t.columns * kTileColumns<T>}, p.Dv, w.acc, w.acc_ld);
  }
  finish<S>(p, q, s.query_start + i0, rows, w);
  tally.add_to(p);
}

/// Packs one block of keys and values of one key/value head, in the layouts whose buffers are given.
template <class S>
void pack_task(const AttentionParams& p, int64_t task) {
  using T = Accumulate<S>;
  const Block k = key_block_of(p, task);
  const Sequence& s = p.sequences[k.b];
  const int64_t j0 = k.index * kKeyBlock, keys = s.M - j0 < kKeyBlock ? s.M - j0 : kKeyBlock;
  const Strided<S> key = rows_of<S>(p.key, k.b, k.head, s.key_start + j0),
                   value = rows_of<S>(p.value, k.b, k.head, s.key_start + j0);
  const int64_t key_ld = pad_columns<T>(p.D), value_ld = pad_columns<T>(p.Dv),
                padded = pad_columns<T>(keys), first = packed_block(p, k.b, k.head, k.index).keys;
  if (p.key_transposed) {
    T* const to = static_cast<T*>(p.key_transposed) + first * p.D;
    pack_transposed<T>(key, keys, p.D, to);
    p.key_finite[task] = all_finite(to, padded * p.D);
  }
  if (p.key_rows) pack_rows<T>(key, keys, p.D, static_cast<T*>(p.key_rows) + first * key_ld);
  if (p.value_transposed)
    pack_transposed<T>(value, keys, p.Dv, static_cast<T*>(p.value_transposed) + first * p.Dv);
  if (p.value_rows) {
    T* const to = static_cast<T*>(p.value_rows) + first * value_ld;
    pack_rows<T>(value, keys, p.Dv, to);
    p.value_finite[task] = all_finite(to, keys * value_ld);
  }
}

}  // namespace

void attention_pack(const AttentionParams& p, int64_t task, void*) {
  with_storage(p.dtype, [&](auto s) { pack_task<decltype(s)>(p, task); });
}

void attention_forward(const AttentionParams& p, int64_t task, void* scratch) {
  with_storage(p.dtype, [&](auto s) { forward_task<decltype(s)>(p, task, scratch); });
}

void attention_forward_layout(const AttentionParams& p, AttentionLayout* layout) {
  with_storage(p.dtype, [&](auto s) {
    using T = Accumulate<decltype(s)>;
    Arena arena(nullptr);
    ForwardScratch<T> measure(p, arena);
    layout->forward_scratch = arena.used();
    layout->key_panel = kTileColumns<T>;
    layout->key_transposed = p.D;
    layout->key_rows = pad_columns<T>(p.D);
    layout->value_transposed = p.Dv;
    layout->value_rows = pad_columns<T>(p.Dv);
  });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
