// What the passes of the backward share: a block of query rows with its incoming gradients, and P and dS of one tile.
//
//   P = exp(u·s − lse)    δ_i = Σ_d dO·O − g_lse    dP = dO·Vᵀ    dS = P∘(dP − δ)       softmax
//   P = a(s)                                      dP = dO·Vᵀ    dS = a'(s)∘dP         relu2, laplace
//
// Dropout multiplies P (in dV) and dP by its keep factors; softcap multiplies dS by 1 − tanh² on the way to the product.
#pragma once

#include "attention/cpu/kernels/backward_strip.h"
#include "attention/cpu/kernels/packed.h"
#include "attention/rules/activations.h"
#include "attention/rules/row_statistics.h"
#include "simd/rule_math.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// One block of query rows with what comes in for it, and a tile or a strip of P and dS.
template <class S>
struct BackwardScratch {
  using T = Accumulate<S>;
  using E = Operand<S>;
  /// P and dS become operands strip by strip.
  static constexpr bool kNarrows = !std::is_same_v<E, T>;
  const E *query, *grad_out;
  const T* delta;
  T *lse, *grad_lse;
  const T *row_max, *row_inverse_sum;  // of coarse rows; null: there are none
  T *scores, *grad_scores;  // P and dS: of a tile, or of a strip where they become operands
  T* addends;               // of a strip in registers
  T* slope;                 // of the softcap
  T* row;                   // P of one row
  T* keep;                  // one row of dropout factors
  int64_t query_ld, out_ld;
  bool query_finite, grad_out_finite;
  E *query_copy, *grad_out_copy;  // of rows that products cannot read where they lie
  PackedBlock<E> packed;          // the keys of the tile at hand

  BackwardScratch(const AttentionParams& p, Arena& arena) {
    constexpr int64_t kElements = (kNarrows ? kStripRows : kMostQueryRows) * kScoreStride;
    query_copy = arena.take<E>(kMostQueryRows * pad_lanes<T>(p.D));
    grad_out_copy = arena.take<E>(kMostQueryRows * pad_lanes<T>(p.Dv));
    lse = arena.take<T>(kMostQueryRows);
    grad_lse = arena.take<T>(kMostQueryRows);
    scores = arena.take<T>(kElements);
    grad_scores = arena.take<T>(kElements);
    addends = arena.take<T>(kStripRows * kScoreStride);
    slope = p.softcap > 0 ? arena.take<T>(kElements) : nullptr;
    row = arena.take<T>(kScoreStride);
    keep = p.dropout.active ? arena.take<T>(kScoreStride) : nullptr;
    packed.key_transposed = arena.take<E>(kKeyBlock * pad_depth<E>(p.D));
    packed.key_rows = arena.take<E>(kKeyBlock * pad_columns<E>(p.D));
    packed.value_transposed = arena.take<E>(kKeyBlock * pad_depth<E>(p.Dv));
  }
};

/// Rows that a product reads: where they lie, or a copy.
template <class E, class S>
FULGURITE_INLINE const E* operand_rows(Strided<S> from, int64_t rows, int64_t width, E* copy,
                                       int64_t* ld) {
  if constexpr (std::is_same_v<E, S>)
    if (from.column_stride == 1 && width % kStep<E> == 0) {
      *ld = from.row_stride;
      return from.data;
    }
  *ld = pad_lanes<Accumulate<S>>(width);
  pack_plain<E>(from, rows, width, copy, *ld);
  return copy;
}

/// Query rows [i0, i0 + rows) of a sequence, a block, and their incoming gradients, lse and δ.
template <class S>
void load_rows(const AttentionParams& p, int64_t b, int64_t h, int64_t i0, int64_t rows,
               BackwardScratch<S>& w) {
  using T = Accumulate<S>;
  using E = Operand<S>;
  const Sequence& s = p.sequences[b];
  const int64_t first = s.query_start + i0, block = query_block_index(p, b, h, i0 / s.query_rows);
  w.query = operand_rows<E>(rows_of<S>(p.query, b, h, first), rows, p.D, w.query_copy, &w.query_ld);
  if (p.grad_out.data) {
    w.grad_out = operand_rows<E>(rows_of<S>(p.grad_out, b, h, first), rows, p.Dv, w.grad_out_copy,
                                 &w.out_ld);
  } else {
    w.out_ld = pad_lanes<T>(p.Dv);
    w.grad_out = w.grad_out_copy;
    __builtin_memset(w.grad_out_copy, 0, sizeof(E) * rows * w.out_ld);
  }
  w.query_finite = p.query_finite[block];
  w.grad_out_finite = p.grad_out_finite[block];
  w.delta = static_cast<const T*>(p.delta) + block * p.query_block_rows;
  const auto statistics = [&](const void* of_rows) {
    return of_rows ? static_cast<const T*>(of_rows) + block * p.query_block_rows : nullptr;
  };
  w.row_max = statistics(p.row_max);
  w.row_inverse_sum = statistics(p.row_inverse_sum);
  if (p.score != ScoreKind::kSoftmax) return;
  for (int64_t r = 0; r < rows; ++r) {
    w.grad_lse[r] = p.grad_lse.data ? *rows_of<T>(p.grad_lse, b, h, first + r).data : T(0);
    w.lse[r] = *rows_of<T>(p.saved_lse, b, h, first + r).data;
  }
}

/// Row r of the block was normalised anew.
template <class S>
FULGURITE_INLINE bool is_coarse(const AttentionParams& p, const BackwardScratch<S>& w, int64_t r) {
  return w.row_max && lse_is_coarse(w.lse[r], p.dtype);
}

/// P and dS of row r of a strip whose first row is row r0 of its block, both 0 where a pair is hidden. Where every key in
/// reach of the row lies in this tile, δ is Σ_j P·dP over Σ_j P, which is 1 without a sink but for the rounding of lse: what
/// should cancel in dP − δ then does (with one key, to exactly 0).
template <class S, class T, class Weights>
FULGURITE_INLINE void softmax_row(const AttentionParams& p, const ScoreRule& rule, const Tile& t,
                                  int64_t r0, int64_t r, T* scores, T* grads,
                                  const BackwardScratch<S>& w, const Weights& weigh) {
  using V = Native<T>;
  if (rule.reach(t.i0 + r).within(t.j0, t.j0 + t.columns)) {
    V dot{}, total{};
    for (int64_t c = t.c0; c < t.c1; c += kLanes<T>) {
      const V score = load<V>(scores + c);
      const IntOf<V> hidden = score == kHidden<T>;
      const V probability = select(hidden, V{}, weigh(score));
      dot = madd(probability, select(hidden, V{}, load<V>(grads + c)), dot);
      total += probability;
      store(w.row + c, probability);
    }
    const T mean = p.sink ? sum(dot) : sum(dot) / sum(total);
    const V delta = splat<V>(mean - w.grad_lse[r0 + r]);
    for (int64_t c = t.c0; c < t.c1; c += kLanes<T>) {
      const V probability = load<V>(w.row + c);
      const V ds = probability * (load<V>(grads + c) - delta);
      store(grads + c, select(load<V>(scores + c) == kHidden<T>, V{}, ds));
      store(scores + c, probability);
    }
    return;
  }
  const V delta = splat<V>(w.delta[r0 + r]);
  for (int64_t c = t.c0; c < t.c1; c += kLanes<T>) {
    const V score = load<V>(scores + c);
    const IntOf<V> hidden = score == kHidden<T>;
    const V probability = select(hidden, V{}, weigh(score));
    const V ds = probability * (load<V>(grads + c) - delta);
    store(grads + c, select(hidden, V{}, ds));
    store(scores + c, probability);
  }
}

/// The same of a row whose lse is too coarse: P = exp(u·s − m)/Σ.
template <class S, class T>
void coarse_softmax_row(const AttentionParams& p, const ScoreRule& rule, const Tile& t, int64_t r0,
                        int64_t r, T* scores, T* grads, const BackwardScratch<S>& w) {
  using V = Native<T>;
  centre_row(p, t, w.row_max[r0 + r], scores);
  const auto weigh = Weigh<Operand<S>>::of_centred();
  const V inverse = splat<V>(w.row_inverse_sum[r0 + r]);
  softmax_row(p, rule, t, r0, r, scores, grads, w, [&](V score) { return weigh(score) * inverse; });
}

template <class T>
FULGURITE_INLINE void activation_row(const AttentionParams& p, const Tile& t, T* scores, T* grads) {
  using V = Native<T>;
  for (int64_t c = t.c0; c < t.c1; c += kLanes<T>) {
    const V score = load<V>(scores + c);
    const V slope = activation_slope<VectorMath>(p.score, p.score_scale, score);
    store(scores + c, activation<VectorMath>(p.score, p.score_scale, score));
    store(grads + c, select(score == kHidden<T>, V{}, slope * load<V>(grads + c)));
  }
}

/// Zeros in the columns of the tile that a strip leaves out.
template <class T>
FULGURITE_INLINE void clear_outside(const Tile& t, const Tile& strip, T* rows) {
  const bool none = strip.state == TileState::kSkip;
  const int64_t begin = none ? t.c1 : strip.c0, end = none ? t.c1 : pad_lanes<T>(strip.c1);
  for (int64_t r = 0; r < strip.rows; ++r) {
    T* const row = rows + r * kScoreStride;
    for (int64_t c = t.c0; c < begin; c += kLanes<T>) store(row + c, Native<T>{});
    for (int64_t c = end; c < t.c1; c += kLanes<T>) store(row + c, Native<T>{});
  }
}

/// P and dS of a strip, through memory.
template <class S, class T>
void gradients_in_memory(const AttentionParams& p, const ScoreRule& rule, const Tile& t, int64_t r0,
                         T* scores, T* grads, T* slope, const BackwardScratch<S>& w) {
  using E = Operand<S>;
  const Spans spans(rule, t);
  score_tile<E, T>(p, rule, t, spans, w.query + r0 * w.query_ld, w.query_ld,
                   w.packed.key_transposed, scores, slope);
  multiply_tile<E>(t, spans, p.Dv, w.grad_out + r0 * w.out_ld, w.out_ld, w.packed.value_transposed,
                   grads);
  for (int64_t r = 0; r < t.rows; ++r, scores += kScoreStride, grads += kScoreStride) {
    if (p.dropout.active) {
      for (int64_t c = t.c0; c < t.c1; ++c) w.keep[c] = 1;
      drop(p, t, r, w.keep);
      for (int64_t c = t.c0; c < t.c1; ++c) grads[c] *= w.keep[c];
    }
    if (p.score != ScoreKind::kSoftmax)
      activation_row(p, t, scores, grads);
    else if (is_coarse(p, w, r0 + r))
      coarse_softmax_row(p, rule, t, r0, r, scores, grads, w);
    else
      softmax_row(p, rule, t, r0, r, scores, grads, w, Weigh<E>(p, finite_base(w.lse[r0 + r])));
    if (p.dropout.active)
      for (int64_t c = t.c0; c < t.c1; ++c) scores[c] *= w.keep[c];
  }
}

/// How many rows of a strip have every key in reach within its tile.
FULGURITE_INLINE int64_t rows_within(const ScoreRule& rule, const Tile& t) {
  int64_t within = 0;
  for (int64_t r = 0; r < t.rows; ++r)
    within += rule.reach(t.i0 + r).within(t.j0, t.j0 + t.columns);
  return within;
}

template <class S>
FULGURITE_INLINE bool has_coarse_row(const AttentionParams& p, const BackwardScratch<S>& w,
                                     int64_t r0, int64_t rows) {
  bool any = false;
  for (int64_t r = r0; w.row_max && r < r0 + rows; ++r) any |= is_coarse(p, w, r);
  return any;
}

/// P into scores and dS into grads for one strip; both are 0 at pairs that are not kept, whatever stands there.
template <class S, class T>
void gradient_strip(const AttentionParams& p, const ScoreRule& rule, const Tile& t, int64_t r0,
                    T* scores, T* grads, T* slope, const BackwardScratch<S>& w) {
  if constexpr (kHasRegisterStrips) {
    using E = Operand<S>;
    const StripKind kind = has_coarse_row(p, w, r0, t.rows)
                               ? StripKind::kInMemory
                               : strip_kind<E>(p, t, p.D > p.Dv ? p.D : p.Dv);
    const int64_t within = kind == StripKind::kInMemory ? -1 : rows_within(rule, t);
    if (within == 0 || within == t.rows) {
      const GradientRows<E> rows = GradientRows<E>{{w.query, w.query_ld, kStep<E>},
                                                   {w.grad_out, w.out_ld, kStep<E>},
                                                   w.lse,
                                                   w.delta,
                                                   w.grad_lse}
                                       .rows_from(r0);
      if (kind == StripKind::kBare)
        return gradients_in_registers(p, t, within > 0, rows, w.packed, BareScores<T>{}, scores,
                                      grads);
      return gradients_in_registers(p, t, within > 0, rows, w.packed,
                                    add_scores(p, rule, t, w.addends), scores, grads);
    }
  }
  gradients_in_memory(p, rule, t, r0, scores, grads, slope, w);
}

/// Calls visit(strip, r0, scores, grads, slope) for the strips of a tile, r0 their first row in it, with P and dS over all
/// columns of the tile.
template <class S, class Visit>
FULGURITE_INLINE void for_gradient_strips(const AttentionParams& p, const ScoreRule& rule,
                                          const Tile& t, BackwardScratch<S>& w,
                                          const Visit& visit) {
  using T = Accumulate<S>;
  for (int64_t r0 = 0; r0 < t.rows; r0 += kStripRows) {
    const int64_t at = BackwardScratch<S>::kNarrows ? 0 : r0 * kScoreStride;
    T *const scores = w.scores + at, *const grads = w.grad_scores + at,
             *const slope = w.slope ? w.slope + at : nullptr;
    Tile strip = strip_of<T>(rule, t, r0);
    if (strip.state != TileState::kSkip)
      gradient_strip(p, rule, strip, r0, scores, grads, slope, w);
    clear_outside(t, strip, scores);
    clear_outside(t, strip, grads);
    strip.c0 = t.c0;
    strip.c1 = t.c1;
    visit(strip, r0, scores, grads, slope);
  }
}

/// dS on its way through the softcap, to the products with Q and K.
template <class T>
void apply_softcap(const Tile& t, T* grads, const T* slope) {
  using V = Native<T>;
  if (!slope) return;
  for (int64_t r = 0; r < t.rows; ++r)
    for (int64_t c = t.c0; c < t.c1; c += kLanes<T>) {
      T* const g = grads + r * kScoreStride + c;
      const V ds = load<V>(g);  // 0 where hidden, whatever the slope is there
      store(g, select(ds == V{}, V{}, ds * load<V>(slope + r * kScoreStride + c)));
    }
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
