// Attention backward from the saved out and lse: dQ, dK and dV. Scores are computed again, tile by tile, once.
//
//   dV = Pᵀ·dO    dQ = scale·dS·K    dK = scale·dSᵀ·Q                                 (P and dS: backward.h)
//
// Reads: query, key, value, out, lse, the incoming gradients and what makes scores. delta: out and dO alone.
// Writes: dK and dV, parts of dQ (query_parts) and, where asked, of dbias; reduce_query the dQ; delta what backward.h reads by rows.
// Task: one key block of one key/value head, which owns the dK and dV of its keys; delta and reduce_query one query block of one head.
// Order of sums: dK and dV over the heads of the group, then query blocks in order. To dQ the blocks j, j + kQueryParts, … add one
// after the other (query_order.h); the parts are added in order afterwards.

#include "attention/cpu/kernels/backward.h"
#include "attention/cpu/kernels/query_order.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class S>
struct KeyValueScratch {
  using T = Accumulate<S>;
  using E = Operand<S>;
  int64_t key_ld, value_ld;
  E *query_panels, *grad_out_panels;
  E *weights, *grads;  // P and dS of a tile as operands along its rows
  E* grads_by_row;     // dS along its columns
  T *grad_key, *grad_value;

  KeyValueScratch(const AttentionParams& p, const BackwardScratch<S>& w, Arena& arena)
      : key_ld(pad_columns<E>(p.D)), value_ld(pad_columns<E>(p.Dv)) {
    query_panels = arena.take<E>(kMostQueryRows * key_ld);
    grad_out_panels = arena.take<E>(kMostQueryRows * value_ld);
    if constexpr (BackwardScratch<S>::kNarrows) {
      weights = arena.take<E>(kMostQueryRows * kScoreStride);
      grads = arena.take<E>(kMostQueryRows * kScoreStride);
      grads_by_row = arena.take<E>(kMostQueryRows * kScoreStride);
    } else {
      weights = w.scores;
      grads = grads_by_row = w.grad_scores;
    }
    grad_key = arena.take<T>(kKeyBlock * key_ld);
    grad_value = arena.take<T>(kKeyBlock * value_ld);
  }
};

/// dV += Pᵀ·dO and dK += dSᵀ·Q of one tile.
template <class S>
void accumulate_key_value(const AttentionParams& p, const ScoreRule& rule, const Tile& t,
                          const Spans& spans, const BackwardScratch<S>& w,
                          const KeyValueScratch<S>& kv) {
  using E = Operand<S>;
  const int64_t depth = pad_depth<E>(t.rows);
  if (p.grad_value.data) {
    pack_rows<E>(Strided<E>{w.grad_out, w.out_ld, 1}, t.rows, p.Dv, kv.grad_out_panels);
    accumulate_tile<E>(rule, t, spans, false, w.grad_out_finite, along_rows(t, kv.weights),
                       {kv.grad_out_panels, depth, kv.value_ld}, p.Dv,
                       kv.grad_value + t.c0 * kv.value_ld, kv.value_ld);
  }
  if (p.grad_key.data) {
    pack_rows<E>(Strided<E>{w.query, w.query_ld, 1}, t.rows, p.D, kv.query_panels);
    accumulate_tile<E>(rule, t, spans, false, w.query_finite, along_rows(t, kv.grads),
                       {kv.query_panels, depth, kv.key_ld}, p.D, kv.grad_key + t.c0 * kv.key_ld,
                       kv.key_ld);
  }
}

/// One part of the dQ of head h, without the scale.
template <class T>
FULGURITE_INLINE T* query_part(const AttentionParams& p, int64_t b, int64_t h, int64_t part,
                               int64_t ld) {
  const int64_t head = h / p.group;
  return static_cast<T*>(p.query_parts[(b * p.Hkv + head) * kQueryParts + part]) +
         (h - head * p.group) * p.sequences[b].N * ld;
}

/// dQ += dS·K of one tile, which is `rows` of its part.
template <class S>
void accumulate_query(const AttentionParams& p, const ScoreRule& rule, const Tile& t,
                      const Spans& spans, const BackwardScratch<S>& w, const KeyValueScratch<S>& kv,
                      Accumulate<S>* rows) {
  using E = Operand<S>;
  accumulate_tile<E>(rule, t, spans, true, w.packed.key_finite, along_columns(t, kv.grads_by_row),
                     {w.packed.key_rows, pad_depth<E>(t.columns), kv.key_ld, t.c0}, p.D, rows,
                     kv.key_ld);
}

/// dbias += dS of one strip, in part q.
template <class T>
void accumulate_bias(const AttentionParams& p, const Tile& t, int64_t q, const T* grads) {
  using V = Native<T>;
  const int64_t* const shape = p.bias_shape;
  const int64_t head = shape[1] == 1 ? 0 : t.h;
  for (int64_t r = 0; r < t.rows; ++r) {
    const int64_t row = shape[2] == 1 ? 0 : t.i0 + r;
    T* const to =
        static_cast<T*>(p.grad_bias_parts) + ((q * shape[1] + head) * shape[2] + row) * shape[3];
    const T* const from = grads + r * kScoreStride;
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

/// dbias = dS of one strip, or 0 without grads, where each element has but one.
template <class T>
void store_bias(const AttentionParams& p, const Tile& t, const T* grads) {
  const int64_t* const shape = p.bias_shape;
  with_storage_beside<T>(p.rule.bias_dtype, [&](auto storage) {
    using B = decltype(storage);
    const int64_t begin = grads ? t.c0 : t.columns, end = grads ? t.c1 : t.columns;
    for (int64_t r = 0; r < t.rows; ++r) {
      const int64_t head = (t.b % shape[0]) * shape[1] + t.h, row = head * shape[2] + t.i0 + r;
      B* const to = static_cast<B*>(p.grad_bias) + row * shape[3] + t.j0;
      __builtin_memset(to, 0, sizeof(B) * begin);
      for (int64_t c = begin; c < end; c += kLanes<T>)
        store_up_to(to + c, load<Native<T>>(grads + r * kScoreStride + c), end - c);
      __builtin_memset(to + end, 0, sizeof(B) * (t.columns - end));
    }
  });
}

/// P and dS of one tile as operands, and what is left of them in dbias.
template <class S>
void make_gradients(const AttentionParams& p, const ScoreRule& rule, const Tile& t,
                    BackwardScratch<S>& w, const KeyValueScratch<S>& kv) {
  using T = Accumulate<S>;
  load_rows<S>(p, t.b, t.h, t.i0, t.rows, w);
  for_gradient_strips(p, rule, t, w,
                      [&](const Tile& strip, int64_t r0, T* weights, T* grads, const T* slope) {
                        if (p.stores_bias) store_bias<T>(p, strip, grads);
                        if (p.grad_bias_parts)
                          accumulate_bias(p, strip, t.b % p.batch_stride, grads);
                        apply_softcap(strip, grads, slope);
                        narrow_for_rows(strip, weights, kv.weights + r0 * kScoreStride);
                        narrow_for_rows(strip, grads, kv.grads + r0 * kScoreStride);
                        narrow_for_columns(strip, grads, kv.grads_by_row + r0 * kScoreStride);
                      });
}

template <class S>
void store_key_value(const AttentionParams& p, const Block& k, int64_t first, int64_t keys,
                     const KeyValueScratch<S>& kv) {
  using T = Accumulate<S>;
  for (int64_t j = 0; j < keys; ++j) {
    if (p.grad_key.data)
      store_row(row_of<S>(p.grad_key, k.b, k.head, first + j), kv.grad_key + j * kv.key_ld, p.D,
                static_cast<T>(p.scale));
    if (p.grad_value.data)
      store_row(row_of<S>(p.grad_value, k.b, k.head, first + j), kv.grad_value + j * kv.value_ld,
                p.Dv, T(1));
  }
}

/// Every tile of one key block, and its dK and dV.
template <class S>
void backward_block(const AttentionParams& p, const Block& k, QueryOrder& order,
                    BackwardScratch<S>& w, const KeyValueScratch<S>& kv) {
  using T = Accumulate<S>;
  const Sequence& s = p.sequences[k.b];
  const ScoreRule rule = rule_of(p, k.b);
  const int64_t j0 = k.index * kKeyBlock, keys = s.M - j0 < kKeyBlock ? s.M - j0 : kKeyBlock;
  read_block<S>(p, k, w.packed);
  TileTally tally;
  __builtin_memset(kv.grad_key, 0, sizeof(T) * keys * kv.key_ld);
  __builtin_memset(kv.grad_value, 0, sizeof(T) * keys * kv.value_ld);
  for (int64_t h = k.head * p.group; h < (k.head + 1) * p.group; ++h)
    for (int64_t block = 0; block < ceil_div(s.N, s.query_rows); ++block, order.next()) {
      const Tile t = make_tile<T>(p, rule, k.b, h, block, k.index);
      T* query_rows = nullptr;
      if (p.grad_query.data) {
        query_rows = query_part<T>(p, k.b, h, k.index % kQueryParts, kv.key_ld) + t.i0 * kv.key_ld;
        if (k.index < kQueryParts) __builtin_memset(query_rows, 0, sizeof(T) * t.rows * kv.key_ld);
      }
      if (tally.skips(t)) {
        if (p.stores_bias) store_bias<T>(p, t, nullptr);
        continue;
      }
      make_gradients<S>(p, rule, t, w, kv);
      const Spans spans(rule, t);
      accumulate_key_value(p, rule, t, spans, w, kv);
      if (!query_rows) continue;
      order.wait();
      accumulate_query(p, rule, t, spans, w, kv, query_rows);
    }
  tally.add_to(p);
  store_key_value<S>(p, k, s.key_start + j0, keys, kv);
}

template <class S>
void backward_task(const AttentionParams& p, int64_t task, void* scratch) {
  Arena arena(scratch);
  BackwardScratch<S> w(p, arena);
  const KeyValueScratch<S> kv(p, w, arena);
  Block k = key_block_of(p, task);
  QueryOrder order(p.tiles_done, task, k.index);
  for (; k.b < p.B; k.b += p.batch_stride) backward_block<S>(p, k, order, w, kv);
  order.end();
}

/// δ_i = Σ_d dO·O − g_lse of one block of rows, whether its rows are finite, and whether lse is too coarse for some.
template <class S>
void delta_task(const AttentionParams& p, int64_t task) {
  using T = Accumulate<S>;
  using V = Native<T>;
  const Block q = query_block_of(p, task);
  const Sequence& s = p.sequences[q.b];
  const int64_t i0 = q.index * s.query_rows,
                rows = s.N - i0 < s.query_rows ? s.N - i0 : s.query_rows;
  T* const delta = static_cast<T*>(p.delta) + task * p.query_block_rows;
  V query_zeros{}, out_zeros{};  // x·0 stays NaN for an infinity or a NaN
  bool coarse = false;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = s.query_start + i0 + r;
    const Strided<S> query = rows_of<S>(p.query, q.b, q.head, row),
                     out = rows_of<S>(p.saved_out, q.b, q.head, row),
                     grad = rows_of<S>(p.grad_out, q.b, q.head, row);
    for_row<T>(query.data, query.column_stride, p.D,
               [&](int64_t, V x) { query_zeros = madd(x, V{}, query_zeros); });
    V dot{};
    if (p.grad_out.data)
      for (int64_t d = 0; d < p.Dv; d += kLanes<T>) {
        const V o = load_strided<V>(out.data + d * out.column_stride, out.column_stride, p.Dv - d),
                g = load_strided<V>(grad.data + d * grad.column_stride, grad.column_stride,
                                    p.Dv - d);
        dot = madd(o, g, dot);
        out_zeros = madd(g, V{}, out_zeros);
      }
    if (p.score == ScoreKind::kSoftmax)
      coarse |= lse_is_coarse(*rows_of<T>(p.saved_lse, q.b, q.head, row).data, p.dtype);
    delta[r] = sum(dot) - (p.grad_lse.data ? *rows_of<T>(p.grad_lse, q.b, q.head, row).data : T(0));
  }
  if (coarse) __atomic_store_n(p.coarse_rows, 1, __ATOMIC_RELAXED);
  p.query_finite[task] = sum(query_zeros) == 0;
  p.grad_out_finite[task] = sum(out_zeros) == 0;
}

/// The parts of one block of dQ, added in order.
template <class S>
void reduce_query_task(const AttentionParams& p, int64_t task, void* scratch) {
  using T = Accumulate<S>;
  using V = Native<T>;
  T* const row = static_cast<T*>(scratch);
  const Block q = query_block_of(p, task);
  const Sequence& s = p.sequences[q.b];
  const int64_t ld = pad_columns<T>(p.D), parts = query_parts_of(s), i0 = q.index * s.query_rows,
                end = s.N - i0 < s.query_rows ? s.N : i0 + s.query_rows;
  for (int64_t i = i0; i < end; ++i) {
    for (int64_t d = 0; d < ld; d += kLanes<T>) {
      V sum{};
      for (int64_t part = 0; part < parts; ++part)
        sum += load<V>(query_part<T>(p, q.b, q.head, part, ld) + i * ld + d);
      store(row + d, sum);
    }
    store_row(row_of<S>(p.grad_query, q.b, q.head, s.query_start + i), row, p.D,
              static_cast<T>(p.scale));
  }
}

}  // namespace

void attention_delta(const AttentionParams& p, int64_t task, void*) {
  with_storage(p.dtype, [&](auto s) { delta_task<decltype(s)>(p, task); });
}

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
    BackwardScratch<decltype(s)> measure(p, shared);
    Arena keys = shared, bias = shared;
    KeyValueScratch<decltype(s)> measure_keys(p, measure, keys);
    bias.take<T>(2 * kMostQueryRows * kScoreStride);
    // Where P and dS become operands of two bytes, a tile of as many bytes holds twice the rows: dK and dV are loaded and
    // stored half as often.
    layout->backward_rows = kMostQueryRows / (measure.kNarrows ? 1 : 2);
    layout->query_part = measure_keys.key_ld;
    layout->backward_scratch = keys.used();
    layout->reduce_query_scratch = measure_keys.key_ld * static_cast<int64_t>(sizeof(T));
    layout->grad_bias_scratch = bias.used();
  });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
