// Attention backward from the saved out and lse; scores are computed again, tile by tile.
//
//   P = exp(s − lse)    δ_i = Σ_d dO·O − g_lse    dV = Pᵀ·dO    dP = dO·Vᵀ    dS = P∘(dP − δ)    dQ = scale·dS·K    dK = scale·dSᵀ·Q
//
// Two passes, so that no sum crosses a task: dK and dV by blocks of keys (the heads of a group inside the task, in order),
// dQ by blocks of queries. Scores and dP are computed twice (7 products instead of 5) and every core has work at B·Hkv = 1.

#include "attention/cpu/tile.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class T>
struct BackwardScratch {
  T *query, *grad_out, *query_panels, *grad_out_panels;  // of one block of query rows
  T *lse, *delta;
  T *scores, *grad_scores;        // P and dS of the tile
  T *grad_query, *grad_key, *grad_value;
  int64_t query_ld, out_ld, key_ld, value_ld;
  bool query_finite, grad_out_finite;

  BackwardScratch(const AttentionParams& p, Arena& arena, bool for_keys)
      : query_ld(pad_lanes<T>(p.D)), out_ld(pad_lanes<T>(p.Dv)), key_ld(pad_columns<T>(p.D)), value_ld(pad_columns<T>(p.Dv)) {
    query = arena.take<T>(kQueryBlock * query_ld);
    grad_out = arena.take<T>(kQueryBlock * out_ld);
    lse = arena.take<T>(kQueryBlock);
    delta = arena.take<T>(kQueryBlock);
    scores = arena.take<T>(kQueryBlock * kScoreStride);
    grad_scores = arena.take<T>(kQueryBlock * kScoreStride);
    query_panels = arena.take<T>(for_keys ? kQueryBlock * key_ld : 0);
    grad_out_panels = arena.take<T>(for_keys ? kQueryBlock * value_ld : 0);
    grad_key = arena.take<T>(for_keys ? kKeyBlock * key_ld : 0);
    grad_value = arena.take<T>(for_keys ? kKeyBlock * value_ld : 0);
    grad_query = arena.take<T>(for_keys ? 0 : kQueryBlock * key_ld);
  }
};

/// Query rows and their incoming gradients, lse and δ.
template <class S>
void load_rows(const AttentionParams& p, int64_t b, int64_t h, int64_t i0, int64_t rows, BackwardScratch<Accumulate<S>>& w) {
  using T = Accumulate<S>;
  using V = Native<T>;
  pack_plain<T>(rows_of<S>(p.query, b, h, i0), rows, p.D, w.query, w.query_ld);
  w.query_finite = all_finite(w.query, rows * w.query_ld);
  if (p.grad_out.data) {
    pack_plain<T>(rows_of<S>(p.grad_out, b, h, i0), rows, p.Dv, w.grad_out, w.out_ld);
  } else {
    __builtin_memset(w.grad_out, 0, sizeof(T) * rows * w.out_ld);
  }
  w.grad_out_finite = all_finite(w.grad_out, rows * w.out_ld);
  for (int64_t r = 0; r < rows; ++r) {
    const Strided<S> out = rows_of<S>(p.saved_out, b, h, i0 + r);
    const T* const g = w.grad_out + r * w.out_ld;
    V dot{};
    for_row<T>(out.data, out.column_stride, p.Dv, [&](int64_t d, V o) { dot = madd(o, load<V>(g + d), dot); });
    w.delta[r] = sum(dot) - (p.grad_lse.data ? *rows_of<T>(p.grad_lse, b, h, i0 + r).data : T(0));
    w.lse[r] = *rows_of<T>(p.saved_lse, b, h, i0 + r).data;
  }
}

/// P into scores and dS into grad_scores; both are 0 at pairs that are not kept, whatever stands there.
template <class T>
void probability_tile(const AttentionParams& p, const Tile& t, const T* key, const T* value, BackwardScratch<T>& w) {
  using V = Native<T>;
  constexpr T kHidden = static_cast<T>(-__builtin_inf());
  score_tile(p, t, w.query, w.query_ld, key, w.scores);
  gemm<T>(t.rows, t.c1 - t.c0, p.Dv, {w.grad_out, w.out_ld, 1}, {value + t.c0 * p.Dv, p.Dv * kTileColumns<T>}, w.grad_scores + t.c0,
          kScoreStride, false);
  for (int64_t r = 0; r < t.rows; ++r) {
    const T lse = w.lse[r] == kHidden ? T(0) : w.lse[r];  // nothing kept: every score of the row is −inf
    for (int64_t c = t.c0; c < t.c1; c += kLanes<T>) {
      T* const s = w.scores + r * kScoreStride + c;
      T* const g = w.grad_scores + r * kScoreStride + c;
      const V score = load<V>(s);
      const IntOf<V> hidden = score == kHidden;
      const V probability = select(hidden, V{}, exp(score - lse));
      store(s, probability);
      store(g, select(hidden, V{}, probability * (load<V>(g) - w.delta[r])));
    }
  }
}

template <class T>
const T* packed_block(const void* base, const AttentionParams& p, const Tile& t, int64_t ld) {
  return static_cast<const T*>(base) + ((t.b * p.Hkv + t.h / p.group) * p.key_blocks + t.j0 / kKeyBlock) * kKeyBlock * ld;
}

template <class S>
void grad_key_value_task(const AttentionParams& p, int64_t task, void* scratch) {
  using T = Accumulate<S>;
  Arena arena(scratch);
  BackwardScratch<T> w(p, arena, true);
  const int64_t block = task % p.key_blocks, head = task / p.key_blocks % p.Hkv, b = task / p.key_blocks / p.Hkv;
  const int64_t j0 = block * kKeyBlock, keys = p.M - j0 < kKeyBlock ? p.M - j0 : kKeyBlock;
  __builtin_memset(w.grad_key, 0, sizeof(T) * keys * w.key_ld);
  __builtin_memset(w.grad_value, 0, sizeof(T) * keys * w.value_ld);
  for (int64_t h = head * p.group; h < (head + 1) * p.group; ++h)
    for (int64_t query_block = 0; query_block < p.query_blocks; ++query_block) {
      const Tile t = make_tile<T>(p, b, h, query_block, block);
      if (t.state == TileState::kSkip) continue;
      load_rows<S>(p, b, h, t.i0, t.rows, w);
      probability_tile(p, t, packed_block<T>(p.key_transposed, p, t, p.D), packed_block<T>(p.value_transposed, p, t, p.Dv), w);
      const Strided<T> query{w.query, w.query_ld, 1}, grad_out{w.grad_out, w.out_ld, 1};
      pack_rows<T>(query, t.rows, p.D, w.query_panels);
      pack_rows<T>(grad_out, t.rows, p.Dv, w.grad_out_panels);
      const int64_t panel = t.rows * kTileColumns<T>;
      accumulate_tile<T>(p, t, false, w.grad_out_finite, {w.scores + t.c0, 1, kScoreStride}, {w.grad_out_panels, panel}, p.Dv,
                         w.grad_value + t.c0 * w.value_ld, w.value_ld);
      accumulate_tile<T>(p, t, false, w.query_finite, {w.grad_scores + t.c0, 1, kScoreStride}, {w.query_panels, panel}, p.D,
                         w.grad_key + t.c0 * w.key_ld, w.key_ld);
    }
  const int64_t first = (b * p.Hkv + head) * p.M + j0;
  for (int64_t j = 0; j < keys; ++j) {
    if (p.grad_key) store_row(static_cast<S*>(p.grad_key) + (first + j) * p.D, w.grad_key + j * w.key_ld, p.D, static_cast<T>(p.scale));
    if (p.grad_value) store_row(static_cast<S*>(p.grad_value) + (first + j) * p.Dv, w.grad_value + j * w.value_ld, p.Dv, T(1));
  }
}

template <class S>
void grad_query_task(const AttentionParams& p, int64_t task, void* scratch) {
  using T = Accumulate<S>;
  Arena arena(scratch);
  BackwardScratch<T> w(p, arena, false);
  const int64_t query_block = task % p.query_blocks, h = task / p.query_blocks % p.Hq, b = task / p.query_blocks / p.Hq;
  const int64_t i0 = query_block * kQueryBlock, rows = p.N - i0 < kQueryBlock ? p.N - i0 : kQueryBlock;
  load_rows<S>(p, b, h, i0, rows, w);
  __builtin_memset(w.grad_query, 0, sizeof(T) * rows * w.key_ld);
  const KeyRange reach = p.rule.keys(i0, i0 + rows);
  for (int64_t block = reach.begin / kKeyBlock; block * kKeyBlock < reach.end; ++block) {
    const Tile t = make_tile<T>(p, b, h, query_block, block);
    if (t.state == TileState::kSkip) continue;
    probability_tile(p, t, packed_block<T>(p.key_transposed, p, t, p.D), packed_block<T>(p.value_transposed, p, t, p.Dv), w);
    const T* const key = packed_block<T>(p.key_rows, p, t, w.key_ld) + t.c0 * kTileColumns<T>;
    const bool finite = p.key_finite[(b * p.Hkv + h / p.group) * p.key_blocks + block];
    accumulate_tile<T>(p, t, true, finite, {w.grad_scores + t.c0, kScoreStride, 1}, {key, t.columns * kTileColumns<T>}, p.D, w.grad_query,
                       w.key_ld);
  }
  S* const out = static_cast<S*>(p.grad_query) + ((b * p.Hq + h) * p.N + i0) * p.D;
  for (int64_t r = 0; r < rows; ++r) store_row(out + r * p.D, w.grad_query + r * w.key_ld, p.D, static_cast<T>(p.scale));
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
    Arena keys(nullptr), queries(nullptr);
    BackwardScratch<T> measure_keys(p, keys, true), measure_queries(p, queries, false);
    layout->grad_key_value_scratch = keys.used();
    layout->grad_query_scratch = queries.used();
  });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
