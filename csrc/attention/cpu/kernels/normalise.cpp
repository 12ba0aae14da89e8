// Statistics of the rows whose lse is too coarse (rules/row_statistics.h), before the backward: the maximum m and the sum l apart.
//
//   m, l: online_softmax.h, without values      P = exp(u·s − m)/l
//
// Reads: queries, keys, what makes scores, and lse.
// Writes: row_max and row_inverse_sum of coarse rows.
// Task: one query block of one head; it packs the keys that its coarse strips meet.
// Order of sums: over the keys in order.

#include "attention/cpu/kernels/backward.h"
#include "attention/cpu/kernels/online_softmax.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class S>
struct NormaliseScratch : OnlineSoftmax<Accumulate<S>> {
  using T = Accumulate<S>;
  using E = Operand<S>;
  E* query;
  int64_t query_ld;
  PackedBlock<E> packed;

  NormaliseScratch(const AttentionParams& p, Arena& arena) : query_ld(pad_lanes<T>(p.D)) {
    this->acc = nullptr;
    this->acc_ld = 0;  // no values
    query = arena.take<E>(kMostQueryRows * query_ld);
    this->scores = arena.take<T>(kStripRows * kScoreStride);
    this->max = arena.take<T>(kMostQueryRows);
    this->limit = arena.take<T>(kMostQueryRows);
    this->sum = arena.take<T>(kMostQueryRows * kLanes<T>);
    packed.key_transposed = arena.take<E>(kKeyBlock * pad_depth<E>(p.D));
  }
};

/// exp(u·s − m) of a strip's scores into l.
template <class S>
void sum_strip(const AttentionParams& p, const Tile& t, const OnlineSoftmax<Accumulate<S>>& w) {
  using T = Accumulate<S>;
  raise_maxima(p, t, w);
  for (int64_t r = 0; r < t.rows; ++r) {
    T* const row = w.scores + r * kScoreStride;
    centre_row(p, t, finite_base(w.max[r]), row);
    weigh_row<T>(Weigh<Operand<S>>::of_centred(), t, row, row, w.sum + r * kLanes<T>);
  }
}

template <class S>
void normalise_task(const AttentionParams& p, int64_t task, void* scratch) {
  using T = Accumulate<S>;
  using E = Operand<S>;
  const Block q = query_block_of(p, task);
  const Sequence& s = p.sequences[q.b];
  const int64_t i0 = q.index * s.query_rows,
                rows = s.N - i0 < s.query_rows ? s.N - i0 : s.query_rows,
                first = s.query_start + i0;
  const auto coarse = [&](int64_t r) {
    return lse_is_coarse(*rows_of<T>(p.saved_lse, q.b, q.head, first + r).data, p.dtype);
  };
  bool strips[kMostQueryRows] = {}, any = false;  // by the row that a strip begins with
  for (int64_t r = 0; r < rows; ++r) {
    if (!coarse(r)) continue;
    any = strips[r / kStripRows * kStripRows] = true;
  }
  if (!any) return;

  Arena arena(scratch);
  NormaliseScratch<S> w(p, arena);
  pack_plain<E>(rows_of<S>(p.query, q.b, q.head, first), rows, p.D, w.query, w.query_ld);
  const T sink = p.sink ? static_cast<const T*>(p.sink)[q.head] : kHidden<T>;
  for (int64_t r = 0; r < rows; ++r) start_row<T>(p, w, r, sink);
  const ScoreRule rule = rule_of(p, q.b);
  TileTally tally;
  for (int64_t block = 0; block < key_blocks_of(s); ++block) {
    const Tile t = make_tile<T>(p, rule, q.b, q.head, q.index, block);
    if (tally.skips(t)) continue;
    bool packed = false;
    for (int64_t r = 0; r < rows; r += kStripRows) {
      const Tile strip = strip_of<T>(rule, t, r);
      if (!strips[r] || strip.state == TileState::kSkip) continue;
      if (!packed) pack_block<S>(p, {q.b, q.head / p.group, block}, w.packed);
      packed = true;
      score_tile<E, T>(p, rule, strip, Spans(rule, strip), w.query + r * w.query_ld, w.query_ld,
                       w.packed.key_transposed, w.scores, nullptr);
      sum_strip<S>(p, strip, w.rows_from(r));
    }
  }
  tally.add_to(p);
  T *const max = static_cast<T*>(p.row_max) + task * p.query_block_rows,
           *const inverse_sum = static_cast<T*>(p.row_inverse_sum) + task * p.query_block_rows;
  for (int64_t r = 0; r < rows; ++r) {
    if (!coarse(r)) continue;
    const T total = sum(load<Native<T>>(w.sum + r * kLanes<T>));
    max[r] = finite_base(w.max[r]);
    inverse_sum[r] = total > 0 ? 1 / total : T(0);
  }
}

}  // namespace

void attention_normalise(const AttentionParams& p, int64_t task, void* scratch) {
  with_storage(p.dtype, [&](auto s) { normalise_task<decltype(s)>(p, task, scratch); });
}

void attention_normalise_layout(const AttentionParams& p, AttentionLayout* layout) {
  with_storage(p.dtype, [&](auto s) {
    Arena arena(nullptr);
    NormaliseScratch<decltype(s)> measure(p, arena);
    layout->normalise_scratch = arena.used();
  });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
