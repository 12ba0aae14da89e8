// Attention backward from the saved out and lse: dQ, dK and dV. Scores are computed again, tile by tile, once.
//
//   dV = Pᵀ·dO    dQ = scale·dS·K    dK = scale·dSᵀ·Q                                 (P and dS: backward.h)
//
// A task is every splits-th key block of one key/value head: it owns the dK and dV of its keys, with the heads of the group
// in order, and its own part of the group's dQ. The parts are added in order afterwards. The number of splits depends on
// the sequence's length alone; taking every splits-th block evens out what causality leaves of each.

#include "attention/cpu/backward.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class T>
struct KeyValueScratch {
  T *query_panels, *grad_out_panels, *grad_key, *grad_value;

  KeyValueScratch(const BackwardScratch<T>& w, Arena& arena) {
    query_panels = arena.take<T>(kMostQueryRows * w.key_ld);
    grad_out_panels = arena.take<T>(kMostQueryRows * w.value_ld);
    grad_key = arena.take<T>(kKeyBlock * w.key_ld);
    grad_value = arena.take<T>(kKeyBlock * w.value_ld);
  }
};

/// dV += Pᵀ·dO and dK += dSᵀ·Q of one tile.
template <class T>
void accumulate_key_value(const AttentionParams& p, const ScoreRule& rule, const Tile& t,
                          const Spans& spans, const BackwardScratch<T>& w, KeyValueScratch<T>& kv) {
  const int64_t panel = t.rows * kTileColumns<T>;
  if (p.grad_value.data) {
    pack_rows<T>(Strided<T>{w.grad_out, w.out_ld, 1}, t.rows, p.Dv, kv.grad_out_panels);
    accumulate_tile<T>(rule, t, spans, false, w.grad_out_finite, {w.scores + t.c0, 1, kScoreStride},
                       {kv.grad_out_panels, panel}, p.Dv, kv.grad_value + t.c0 * w.value_ld,
                       w.value_ld);
  }
  if (p.grad_key.data) {
    pack_rows<T>(Strided<T>{w.query, w.query_ld, 1}, t.rows, p.D, kv.query_panels);
    accumulate_tile<T>(rule, t, spans, false, w.query_finite,
                       {w.grad_scores + t.c0, 1, kScoreStride}, {kv.query_panels, panel}, p.D,
                       kv.grad_key + t.c0 * w.key_ld, w.key_ld);
  }
}

/// This split's part of the dQ of head h, without the scale.
template <class T>
FULGURITE_INLINE T* query_part(const AttentionParams& p, int64_t b, int64_t h, int64_t split,
                               int64_t ld) {
  const Sequence& s = p.sequences[b];
  return static_cast<T*>(p.grad_query_parts) +
         (s.part_start * p.Hq + (h * s.splits + split) * s.N) * ld;
}

/// dQ += dS·K of one tile.
template <class T>
void accumulate_query(const AttentionParams& p, const ScoreRule& rule, const Tile& t,
                      const Spans& spans, const BackwardScratch<T>& w, T* part) {
  const PackedBlock packed = packed_block(p, t.b, t.h / p.group, t.j0 / kKeyBlock);
  const T* const key =
      static_cast<const T*>(p.key_rows) + packed.keys * w.key_ld + t.c0 * kTileColumns<T>;
  accumulate_tile<T>(rule, t, spans, true, p.key_finite[packed.index],
                     {w.grad_scores + t.c0, kScoreStride, 1}, {key, t.columns * kTileColumns<T>},
                     p.D, part + t.i0 * w.key_ld, w.key_ld);
}

/// dbias += dS of one tile, in part q.
template <class T>
void accumulate_bias(const AttentionParams& p, const Tile& t, int64_t q,
                     const BackwardScratch<T>& w) {
  using V = Native<T>;
  const int64_t* const shape = p.bias_shape;
  const int64_t head = shape[1] == 1 ? 0 : t.h;
  for (int64_t r = 0; r < t.rows; ++r) {
    const int64_t row = shape[2] == 1 ? 0 : t.i0 + r;
    T* const to =
        static_cast<T*>(p.grad_bias_parts) + ((q * shape[1] + head) * shape[2] + row) * shape[3];
    const T* const from = w.grad_scores + r * kScoreStride;
    int64_t c = t.c0;
    if (shape[3] == 1) {
      V total{};  // the columns that fill the last vector are zeros
      for (; c < t.c1; c += kLanes<T>) total += load<V>(from + c);
      to[0] += sum(total);
      continue;
    }
    T* const columns = to + t.j0;
    for (; c + kLanes<T> <= t.c1; c += kLanes<T>)
      store(columns + c, load<V>(columns + c) + load<V>(from + c));
    for (; c < t.c1; ++c) columns[c] += from[c];
  }
}

/// Every tile of one key block, and its dK and dV.
template <class S>
void backward_block(const AttentionParams& p, const ScoreRule& rule, const Block& split,
                    int64_t key_block, BackwardScratch<Accumulate<S>>& w,
                    KeyValueScratch<Accumulate<S>>& kv) {
  using T = Accumulate<S>;
  const Sequence& s = p.sequences[split.b];
  const int64_t j0 = key_block * kKeyBlock, keys = s.M - j0 < kKeyBlock ? s.M - j0 : kKeyBlock;
  TileTally tally;
  __builtin_memset(kv.grad_key, 0, sizeof(T) * keys * w.key_ld);
  __builtin_memset(kv.grad_value, 0, sizeof(T) * keys * w.value_ld);
  for (int64_t h = split.head * p.group; h < (split.head + 1) * p.group; ++h)
    for (int64_t block = 0; block < ceil_div(s.N, s.query_rows); ++block) {
      const Tile t = make_tile<T>(p, rule, split.b, h, block, key_block);
      if (tally.skips(t)) continue;
      load_rows<S>(p, split.b, h, t.i0, t.rows, w);
      const Spans spans(rule, t);
      gradient_tile<S>(p, rule, t, spans, w);
      if (p.grad_bias_parts) accumulate_bias(p, t, split.b % p.batch_stride, w);
      apply_softcap(t, w);
      accumulate_key_value(p, rule, t, spans, w, kv);
      if (p.grad_query.data)
        accumulate_query(p, rule, t, spans, w, query_part<T>(p, split.b, h, split.index, w.key_ld));
    }
  tally.add_to(p);
  for (int64_t j = 0; j < keys; ++j) {
    const int64_t row = s.key_start + j0 + j;
    if (p.grad_key.data)
      store_row(row_of<S>(p.grad_key, split.b, split.head, row), kv.grad_key + j * w.key_ld, p.D,
                static_cast<T>(p.scale));
    if (p.grad_value.data)
      store_row(row_of<S>(p.grad_value, split.b, split.head, row), kv.grad_value + j * w.value_ld,
                p.Dv, T(1));
  }
}

template <class S>
void backward_task(const AttentionParams& p, int64_t task, void* scratch) {
  using T = Accumulate<S>;
  Arena arena(scratch);
  BackwardScratch<T> w(p, arena);
  KeyValueScratch<T> kv(w, arena);
  for (Block split = split_of(p, task); split.b < p.B; split.b += p.batch_stride) {
    const Sequence& s = p.sequences[split.b];
    const ScoreRule rule = rule_of(p, split.b);
    if (p.grad_query.data)
      for (int64_t h = split.head * p.group; h < (split.head + 1) * p.group; ++h)
        __builtin_memset(query_part<T>(p, split.b, h, split.index, w.key_ld), 0,
                         sizeof(T) * s.N * w.key_ld);
    for (int64_t block = split.index; block < ceil_div(s.M, kKeyBlock); block += s.splits)
      backward_block<S>(p, rule, split, block, w, kv);
  }
}

/// The parts of one block of dQ, added in order.
template <class S>
void reduce_query_task(const AttentionParams& p, int64_t task, void* scratch) {
  using T = Accumulate<S>;
  using V = Native<T>;
  T* const row = static_cast<T*>(scratch);
  const Block q = query_block_of(p, task);
  const Sequence& s = p.sequences[q.b];
  const int64_t ld = pad_columns<T>(p.D), i0 = q.index * s.query_rows,
                end = s.N - i0 < s.query_rows ? s.N : i0 + s.query_rows;
  for (int64_t i = i0; i < end; ++i) {
    for (int64_t d = 0; d < ld; d += kLanes<T>) {
      V sum{};
      for (int64_t split = 0; split < s.splits; ++split)
        sum += load<V>(query_part<T>(p, q.b, q.head, split, ld) + i * ld + d);
      store(row + d, sum);
    }
    store_row(row_of<S>(p.grad_query, q.b, q.head, s.query_start + i), row, p.D,
              static_cast<T>(p.scale));
  }
}

}  // namespace

void attention_backward(const AttentionParams& p, int64_t task, void* scratch) {
  with_storage(p.dtype, [&](auto s) { backward_task<decltype(s)>(p, task, scratch); });
}

void attention_reduce_query(const AttentionParams& p, int64_t task, void* scratch) {
  with_storage(p.dtype, [&](auto s) { reduce_query_task<decltype(s)>(p, task, scratch); });
}

void attention_backward_layout(const AttentionParams& p, AttentionLayout* layout) {
  with_storage(p.dtype, [&](auto s) {
    using T = Accumulate<decltype(s)>;
    Arena shared(nullptr);
    BackwardScratch<T> measure(p, shared);
    Arena keys = shared, bias = shared;
    KeyValueScratch<T> measure_keys(measure, keys);
    bias.take<T>(kMostQueryRows * kScoreStride);
    layout->query_part = measure.key_ld;
    layout->backward_scratch = keys.used();
    layout->reduce_query_scratch = measure.key_ld * static_cast<int64_t>(sizeof(T));
    layout->grad_bias_scratch = bias.used();
    layout->grad_sink_scratch = shared.used();
  });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
