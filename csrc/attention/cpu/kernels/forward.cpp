// Attention forward: tiles of queries by keys, softmax computed online, nothing of size N×M in memory.
//
// Per row, over the key tiles J in order (m starts at −inf, l and o at 0):
//   o = α·o + p·V_J        with α and p of online_softmax.h
// and at the end out = o/l, lse = m + log l. A row that keeps nothing has l = 0: out 0, lse −inf. A sink is a score without
// a value: m starts at sink_h and l at 1. Dropout acts on p·V only. Scores of other kinds are not normalised (rules/activations.h).
//
// Reads: query, key, value and what makes scores; K and V as packed once per key/value head, or by the task (packed.h).
// Writes: out and lse. pack: a key block as operands, and whether it is finite.
// Task: one query block of one head; pack one key block of one key/value head.
// Order of sums: a row's l and o over the keys in order, block by block; a product is one chain over its depth. Nothing depends on
// the rows beside it.

#include "attention/cpu/kernels/forward_strip.h"
#include "attention/cpu/kernels/packed.h"
#include "attention/rules/activations.h"
#include "simd/rule_math.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class S>
struct ForwardScratch : OnlineSoftmax<Accumulate<S>> {
  using T = Accumulate<S>;
  using E = Operand<S>;
  E *query, *weights;  // weights: p as operands, of one strip of rows
  T* addends;          // of one strip
  int64_t query_ld;
  PackedBlock<E> packed;

  ForwardScratch(const AttentionParams& p, Arena& arena) : query_ld(pad_lanes<T>(p.D)) {
    this->acc_ld = pad_columns<T>(p.Dv);
    query = arena.take<E>(kMostQueryRows * query_ld);
    this->scores = arena.take<T>(kStripRows * kScoreStride);
    if constexpr (std::is_same_v<E, T>)
      weights = this->scores;
    else
      weights = arena.take<E>(kStripRows * kScoreStride);
    addends = arena.take<T>(kStripRows * kScoreStride);
    this->acc = arena.take<T>(kMostQueryRows * this->acc_ld);
    this->max = arena.take<T>(kMostQueryRows);
    this->limit = arena.take<T>(kMostQueryRows);
    this->sum = arena.take<T>(kMostQueryRows * kLanes<T>);
    packed.key_transposed = arena.take<E>(kKeyBlock * pad_depth<E>(p.D));
    packed.value_rows = arena.take<E>(kKeyBlock * this->acc_ld);
  }
};

/// scores become a(s).
template <class T>
void activate(const AttentionParams& p, const Tile& t, const OnlineSoftmax<T>& w) {
  using V = Native<T>;
  for (int64_t r = 0; r < t.rows; ++r)
    for (int64_t c = t.c0; c < t.c1; c += kLanes<T>) {
      T* const s = w.scores + r * kScoreStride + c;
      store(s, activation<VectorMath>(p.score, p.score_scale, load<V>(s)));
    }
}

template <class S>
void finish(const AttentionParams& p, const Block& block, int64_t start_row, int64_t rows,
            const OnlineSoftmax<Accumulate<S>>& w) {
  using T = Accumulate<S>;
  using V = Native<T>;
  for (int64_t r = 0; r < rows; ++r) {
    T* const acc = w.acc + r * w.acc_ld;
    T lse = 0;
    if (p.score == ScoreKind::kSoftmax) {
      const T total = sum(load<V>(w.sum + r * kLanes<T>));
      for (int64_t d = 0; d < p.Dv; d += kLanes<T>)
        store(acc + d, total == 0 ? V{} : load<V>(acc + d) / total);
      lse = total == 0 ? kHidden<T> : w.max[r] + static_cast<T>(__builtin_log(total));
    }
    store_row(row_of<S>(p.out, block.b, block.head, start_row + r), acc, p.Dv, T(1));
    *row_of<T>(p.lse, block.b, block.head, start_row + r) = lse;
  }
}

/// Weights of a strip of rows, through memory.
template <class E, class T>
void weigh_strip(const AttentionParams& p, const ScoreRule& rule, const Tile& t, const Spans& spans,
                 const E* query, int64_t ld, const E* key, const OnlineSoftmax<T>& softmax,
                 E* weights) {
  score_tile<E, T>(p, rule, t, spans, query, ld, key, softmax.scores, nullptr);
  if (p.score == ScoreKind::kSoftmax) {
    raise_maxima(p, t, softmax);
    return exponentiate(p, t, softmax, weights);
  }
  activate(p, t, softmax);
  narrow_for_columns(t, softmax.scores, weights);
}

/// A strip of rows against one packed block: small enough to stay in the first cache from product to product.
template <class S>
void attend(const AttentionParams& p, const ScoreRule& rule, const Tile& t,
            const PackedBlock<Operand<S>>& packed, const Operand<S>* query,
            const ForwardScratch<S>& w, const OnlineSoftmax<Accumulate<S>>& softmax) {
  using E = Operand<S>;
  const Spans spans(rule, t);
  const StripKind kind = strip_kind<E>(p, t, p.D);
  if constexpr (kHasRegisterStrips) {
    if (kind == StripKind::kBare)
      weigh_in_registers(p, t, query, w.query_ld, packed.key_transposed,
                         BareScores<Accumulate<S>>{}, softmax, w.weights);
    if (kind == StripKind::kAdded)
      weigh_in_registers(p, t, query, w.query_ld, packed.key_transposed,
                         add_scores(p, rule, t, w.addends), softmax, w.weights);
  }
  if (kind == StripKind::kInMemory)
    weigh_strip(p, rule, t, spans, query, w.query_ld, packed.key_transposed, softmax, w.weights);
  accumulate_tile<E>(rule, t, spans, true, packed.value_finite, along_columns(t, w.weights),
                     {packed.value_rows, pad_depth<E>(t.columns), w.acc_ld, t.c0}, p.Dv,
                     softmax.acc, w.acc_ld);
}

template <class S>
void forward_task(const AttentionParams& p, int64_t task, void* scratch) {
  using T = Accumulate<S>;
  Arena arena(scratch);
  ForwardScratch<S> w(p, arena);
  const Block q = query_block_of(p, task);
  const Sequence& s = p.sequences[q.b];
  const ScoreRule rule = rule_of(p, q.b);
  const int64_t i0 = q.index * s.query_rows,
                rows = s.N - i0 < s.query_rows ? s.N - i0 : s.query_rows;
  pack_plain<Operand<S>>(rows_of<S>(p.query, q.b, q.head, s.query_start + i0), rows, p.D, w.query,
                         w.query_ld);
  const T sink = p.sink ? static_cast<const T*>(p.sink)[q.head] : kHidden<T>;
  for (int64_t r = 0; r < rows; ++r) start_row<T>(p, w, r, sink);
  TileTally tally;
  for (int64_t block = 0; block < key_blocks_of(s); ++block) {
    const Tile t = make_tile<T>(p, rule, q.b, q.head, q.index, block);
    if (tally.skips(t)) continue;
    const Block keys{q.b, q.head / p.group, block};
    const PackedBlock<Operand<S>>& packed = read_block<S>(p, keys, w.packed);
    for (int64_t r = 0; r < rows; r += kStripRows) {
      const Tile strip = strip_of<T>(rule, t, r);
      if (strip.state == TileState::kSkip) continue;
      attend<S>(p, rule, strip, packed, w.query + r * w.query_ld, w, w.rows_from(r));
    }
  }
  finish<S>(p, q, s.query_start + i0, rows, w);
  tally.add_to(p);
}

/// Packs one block for the tasks that follow.
template <class S>
void pack_task(const AttentionParams& p, int64_t task) {
  const Block k = key_block_of(p, task);
  PackedBlock<Operand<S>> block = place_of_block<S>(p, k);
  pack_block<S>(p, k, block);
  p.key_finite[task] = block.key_finite;
  p.value_finite[task] = block.value_finite;
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
    using E = Operand<decltype(s)>;
    constexpr int64_t kBytes = sizeof(E);
    Arena arena(nullptr);
    ForwardScratch<decltype(s)> measure(p, arena);
    layout->forward_rows = kMostQueryRows / 2;
    layout->forward_scratch = arena.used();
    layout->key_multiple = pad_columns<E>(1);
    layout->key_transposed = pad_depth<E>(p.D) * kBytes;
    layout->key_rows = pad_columns<E>(p.D) * kBytes;
    layout->value_transposed = pad_depth<E>(p.Dv) * kBytes;
    layout->value_rows = pad_columns<E>(p.Dv) * kBytes;
  });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
