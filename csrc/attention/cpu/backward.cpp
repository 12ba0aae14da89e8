// Attention backward from the saved out and lse: dQ, dK and dV. Scores are computed again, tile by tile.
//
//   dV = Pᵀ·dO    dQ = scale·dS·K    dK = scale·dSᵀ·Q                                 (P and dS: backward.h)
//
// Two passes, so that no sum crosses a task: dK and dV by blocks of keys (the heads of a group inside the task, in order),
// dQ by blocks of queries. Scores and dP are computed twice (7 products instead of 5) and every core has work at B·Hkv = 1.

#include "attention/cpu/backward.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class T>
struct KeyValueScratch {
  T *query_panels, *grad_out_panels, *grad_key, *grad_value;

  KeyValueScratch(const BackwardScratch<T>& w, Arena& arena) {
    query_panels = arena.take<T>(kQueryBlock * w.key_ld);
    grad_out_panels = arena.take<T>(kQueryBlock * w.value_ld);
    grad_key = arena.take<T>(kKeyBlock * w.key_ld);
    grad_value = arena.take<T>(kKeyBlock * w.value_ld);
  }
};

/// dV += Pᵀ·dO and dK += dSᵀ·Q of one tile.
template <class T>
void accumulate_key_value(const AttentionParams& p, const ScoreRule& rule, const Tile& t,
                          const BackwardScratch<T>& w, KeyValueScratch<T>& kv) {
  const Strided<T> query{w.query, w.query_ld, 1}, grad_out{w.grad_out, w.out_ld, 1};
  pack_rows<T>(query, t.rows, p.D, kv.query_panels);
  pack_rows<T>(grad_out, t.rows, p.Dv, kv.grad_out_panels);
  const int64_t panel = t.rows * kTileColumns<T>;
  accumulate_tile<T>(rule, t, false, w.grad_out_finite, {w.scores + t.c0, 1, kScoreStride},
                     {kv.grad_out_panels, panel}, p.Dv, kv.grad_value + t.c0 * w.value_ld,
                     w.value_ld);
  accumulate_tile<T>(rule, t, false, w.query_finite, {w.grad_scores + t.c0, 1, kScoreStride},
                     {kv.query_panels, panel}, p.D, kv.grad_key + t.c0 * w.key_ld, w.key_ld);
}

template <class S>
void grad_key_value_task(const AttentionParams& p, int64_t task, void* scratch) {
  using T = Accumulate<S>;
  Arena arena(scratch);
  BackwardScratch<T> w(p, arena);
  KeyValueScratch<T> kv(w, arena);
  const Block k = key_block_of(p, task);
  const Sequence& s = p.sequences[k.b];
  const ScoreRule rule = rule_of(p, k.b);
  const int64_t j0 = k.index * kKeyBlock, keys = s.M - j0 < kKeyBlock ? s.M - j0 : kKeyBlock;
  __builtin_memset(kv.grad_key, 0, sizeof(T) * keys * w.key_ld);
  __builtin_memset(kv.grad_value, 0, sizeof(T) * keys * w.value_ld);
  for (int64_t h = k.head * p.group; h < (k.head + 1) * p.group; ++h)
    for (int64_t block = 0; block < block_count(s.N, kQueryBlock); ++block) {
      const Tile t = make_tile<T>(p, rule, k.b, h, block, k.index);
      if (t.state == TileState::kSkip) continue;
      load_rows<S>(p, k.b, h, t.i0, t.rows, w);
      gradient_tile<S>(p, rule, t, w);
      apply_softcap(t, w);
      accumulate_key_value(p, rule, t, w, kv);
    }
  for (int64_t j = 0; j < keys; ++j) {
    const int64_t row = s.key_start + j0 + j;
    if (p.grad_key.data)
      store_row(row_of<S>(p.grad_key, k.b, k.head, row), kv.grad_key + j * w.key_ld, p.D,
                static_cast<T>(p.scale));
    if (p.grad_value.data)
      store_row(row_of<S>(p.grad_value, k.b, k.head, row), kv.grad_value + j * w.value_ld, p.Dv,
                T(1));
  }
}

template <class S>
void grad_query_task(const AttentionParams& p, int64_t task, void* scratch) {
  using T = Accumulate<S>;
  Arena arena(scratch);
  BackwardScratch<T> w(p, arena);
  T* const grad_query = arena.take<T>(kQueryBlock * w.key_ld);
  const Block q = query_block_of(p, task);
  const Sequence& s = p.sequences[q.b];
  const ScoreRule rule = rule_of(p, q.b);
  const int64_t i0 = q.index * kQueryBlock, rows = s.N - i0 < kQueryBlock ? s.N - i0 : kQueryBlock;
  load_rows<S>(p, q.b, q.head, i0, rows, w);
  __builtin_memset(grad_query, 0, sizeof(T) * rows * w.key_ld);
  for (int64_t block = 0; block < block_count(s.M, kKeyBlock); ++block) {
    const Tile t = make_tile<T>(p, rule, q.b, q.head, q.index, block);
    if (t.state == TileState::kSkip) continue;
    gradient_tile<S>(p, rule, t, w);
    apply_softcap(t, w);
    const PackedBlock packed = packed_block(p, q.b, q.head / p.group, block);
    const T* const key =
        static_cast<const T*>(p.key_rows) + packed.keys * w.key_ld + t.c0 * kTileColumns<T>;
    accumulate_tile<T>(rule, t, true, p.key_finite[packed.index],
                       {w.grad_scores + t.c0, kScoreStride, 1}, {key, t.columns * kTileColumns<T>},
                       p.D, grad_query, w.key_ld);
  }
  for (int64_t r = 0; r < rows; ++r)
    store_row(row_of<S>(p.grad_query, q.b, q.head, s.query_start + i0 + r),
              grad_query + r * w.key_ld, p.D, static_cast<T>(p.scale));
}

}  // namespace

void attention_grad_key_value(const AttentionParams& p, int64_t task, void* scratch) {
  with_storage(p.dtype, [&](auto s) { grad_key_value_task<decltype(s)>(p, task, scratch); });
}

void attention_grad_query(const AttentionParams& p, int64_t task, void* scratch) {
  with_storage(p.dtype, [&](auto s) { grad_query_task<decltype(s)>(p, task, scratch); });
}

void attention_backward_layout(const AttentionParams& p, AttentionLayout* layout) {
  with_storage(p.dtype, [&](auto s) {
    using T = Accumulate<decltype(s)>;
    Arena shared(nullptr);
    BackwardScratch<T> measure(p, shared);
    Arena keys = shared, queries = shared, bias = shared;
    KeyValueScratch<T> measure_keys(measure, keys);
    queries.take<T>(kQueryBlock * measure.key_ld);
    bias.take<T>(kQueryBlock * kScoreStride);
    layout->grad_key_value_scratch = keys.used();
    layout->grad_query_scratch = queries.used();
    layout->grad_bias_scratch = bias.used();
    layout->grad_sink_scratch = shared.used();
  });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
