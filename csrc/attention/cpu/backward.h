// What the passes of the backward share: a block of query rows with its incoming gradients, and P and dS of one tile.
//
//   P = exp(u·s − lse)    δ_i = Σ_d dO·O − g_lse    dP = dO·Vᵀ    dS = P∘(dP − δ)       softmax
//   P = a(s)                                      dP = dO·Vᵀ    dS = a'(s)∘dP         relu2, laplace
//
// Dropout multiplies P (in dV) and dP by its keep factors; softcap multiplies dS by 1 − tanh² on the way to the product.
#pragma once

#include "attention/cpu/activation.h"
#include "attention/cpu/row_scores.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

template <class T>
struct BackwardScratch {
  T *query, *grad_out, *lse, *grad_lse, *delta;  // of one block of query rows
  T *scores, *grad_scores;                       // P and dS of a tile
  T* slope;                                      // of the softcap
  T* row;                                        // P of one row
  T* keep;                                       // one row of dropout factors
  int64_t query_ld, out_ld, key_ld, value_ld;
  bool query_finite, grad_out_finite;

  BackwardScratch(const AttentionParams& p, Arena& arena)
      : query_ld(pad_lanes<T>(p.D)),
        out_ld(pad_lanes<T>(p.Dv)),
        key_ld(pad_columns<T>(p.D)),
        value_ld(pad_columns<T>(p.Dv)) {
    query = arena.take<T>(kMostQueryRows * query_ld);
    grad_out = arena.take<T>(kMostQueryRows * out_ld);
    lse = arena.take<T>(kMostQueryRows);
    grad_lse = arena.take<T>(kMostQueryRows);
    delta = arena.take<T>(kMostQueryRows);
    scores = arena.take<T>(kMostQueryRows * kScoreStride);
    grad_scores = arena.take<T>(kMostQueryRows * kScoreStride);
    slope = p.softcap > 0 ? arena.take<T>(kMostQueryRows * kScoreStride) : nullptr;
    row = arena.take<T>(kScoreStride);
    keep = p.dropout.active ? arena.take<T>(kScoreStride) : nullptr;
  }
};

/// Σ_d dO·O of one row, from gradients in the accumulation type.
template <class S>
FULGURITE_INLINE Accumulate<S> output_dot(const AttentionParams& p, int64_t b, int64_t h,
                                          int64_t row, const Accumulate<S>* grad_out) {
  using T = Accumulate<S>;
  using V = Native<T>;
  const Strided<S> out = rows_of<S>(p.saved_out, b, h, row);
  V dot{};
  for_row<T>(out.data, out.column_stride, p.Dv,
             [&](int64_t d, V o) { dot = madd(o, load<V>(grad_out + d), dot); });
  return sum(dot);
}

/// Query rows [i0, i0 + rows) of a sequence, their incoming gradients, lse and δ.
template <class S>
void load_rows(const AttentionParams& p, int64_t b, int64_t h, int64_t i0, int64_t rows,
               BackwardScratch<Accumulate<S>>& w) {
  using T = Accumulate<S>;
  const int64_t first = p.sequences[b].query_start + i0;
  pack_plain<T>(rows_of<S>(p.query, b, h, first), rows, p.D, w.query, w.query_ld);
  w.query_finite = all_finite(w.query, rows * w.query_ld);
  if (p.grad_out.data) {
    pack_plain<T>(rows_of<S>(p.grad_out, b, h, first), rows, p.Dv, w.grad_out, w.out_ld);
  } else {
    __builtin_memset(w.grad_out, 0, sizeof(T) * rows * w.out_ld);
  }
  w.grad_out_finite = all_finite(w.grad_out, rows * w.out_ld);
  if (p.score != ScoreKind::kSoftmax) return;
  for (int64_t r = 0; r < rows; ++r) {
    w.grad_lse[r] = p.grad_lse.data ? *rows_of<T>(p.grad_lse, b, h, first + r).data : T(0);
    w.delta[r] = output_dot<S>(p, b, h, first + r, w.grad_out + r * w.out_ld) - w.grad_lse[r];
    w.lse[r] = *rows_of<T>(p.saved_lse, b, h, first + r).data;
  }
}

/// P and dS of row r, both 0 where a pair is hidden. Where every key in reach of the row lies in this tile, δ is Σ_j P·dP
/// over Σ_j P, which is 1 without a sink but for the rounding of lse: what should cancel in dP − δ then does (with one key,
/// to exactly 0).
template <class T>
FULGURITE_INLINE void softmax_row(const AttentionParams& p, const ScoreRule& rule, const Tile& t,
                                  int64_t r, BackwardScratch<T>& w) {
  using V = Native<T>;
  T* const scores = w.scores + r * kScoreStride;
  T* const grads = w.grad_scores + r * kScoreStride;
  const V unit = splat<V>(static_cast<T>(p.score_unit));
  // nothing kept: every score of the row is −inf
  const V lse = splat<V>(w.lse[r] == kHidden<T> ? T(0) : w.lse[r]);
  if (rule.reach(t.i0 + r).within(t.j0, t.j0 + t.columns)) {
    V dot{}, total{};
    for (int64_t c = t.c0; c < t.c1; c += kLanes<T>) {
      const V score = load<V>(scores + c);
      const IntOf<V> hidden = score == kHidden<T>;
      const V probability = select(hidden, V{}, exp_flushed(score * unit - lse));
      dot = madd(probability, select(hidden, V{}, load<V>(grads + c)), dot);
      total += probability;
      store(w.row + c, probability);
    }
    const T mean = p.sink ? sum(dot) : sum(dot) / sum(total);
    const V delta = splat<V>(mean - w.grad_lse[r]);
    for (int64_t c = t.c0; c < t.c1; c += kLanes<T>) {
      const V probability = load<V>(w.row + c);
      const V ds = probability * (load<V>(grads + c) - delta);
      store(grads + c, select(load<V>(scores + c) == kHidden<T>, V{}, ds));
      store(scores + c, probability);
    }
    return;
  }
  const V delta = splat<V>(w.delta[r]);
  for (int64_t c = t.c0; c < t.c1; c += kLanes<T>) {
    const V score = load<V>(scores + c);
    const IntOf<V> hidden = score == kHidden<T>;
    const V probability = select(hidden, V{}, exp_flushed(score * unit - lse));
    const V ds = probability * (load<V>(grads + c) - delta);
    store(grads + c, select(hidden, V{}, ds));
    store(scores + c, probability);
  }
}

template <class T>
FULGURITE_INLINE void activation_row(const AttentionParams& p, const Tile& t, int64_t r,
                                     BackwardScratch<T>& w) {
  using V = Native<T>;
  for (int64_t c = t.c0; c < t.c1; c += kLanes<T>) {
    T* const s = w.scores + r * kScoreStride + c;
    T* const g = w.grad_scores + r * kScoreStride + c;
    const V score = load<V>(s);
    store(s, activation(p, score));
    store(g, select(score == kHidden<T>, V{}, activation_slope(p, score) * load<V>(g)));
  }
}

/// P into scores and dS into grad_scores; both are 0 at pairs that are not kept, whatever stands there.
template <class S>
void gradient_tile(const AttentionParams& p, const ScoreRule& rule, const Tile& t,
                   const Spans& spans, BackwardScratch<Accumulate<S>>& w) {
  using T = Accumulate<S>;
  const PackedBlock packed = packed_block(p, t.b, t.h / p.group, t.j0 / kKeyBlock);
  const T* const key = static_cast<const T*>(p.key_transposed) + packed.keys * p.D;
  const T* const value = static_cast<const T*>(p.value_transposed) + packed.keys * p.Dv;
  score_tile<T>(p, rule, t, spans, w.query, w.query_ld, key, w.scores, w.slope);
  multiply_tile<T>(t, spans, p.Dv, {w.grad_out, w.out_ld, 1}, value, w.grad_scores);
  for (int64_t r = 0; r < t.rows; ++r) {
    if (p.dropout.active) {
      for (int64_t c = t.c0; c < t.c1; ++c) w.keep[c] = 1;
      drop(p, t, r, w.keep);
      for (int64_t c = t.c0; c < t.c1; ++c) w.grad_scores[r * kScoreStride + c] *= w.keep[c];
    }
    if (p.score == ScoreKind::kSoftmax)
      softmax_row(p, rule, t, r, w);
    else
      activation_row(p, t, r, w);
    if (p.dropout.active)
      for (int64_t c = t.c0; c < t.c1; ++c) w.scores[r * kScoreStride + c] *= w.keep[c];
  }
}

/// dS on its way through the softcap, to the products with Q and K.
template <class T>
void apply_softcap(const Tile& t, BackwardScratch<T>& w) {
  using V = Native<T>;
  if (!w.slope) return;
  for (int64_t r = 0; r < t.rows; ++r)
    for (int64_t c = t.c0; c < t.c1; c += kLanes<T>) {
      T* const g = w.grad_scores + r * kScoreStride + c;
      const V ds = load<V>(g);  // 0 where hidden, whatever the slope is there
      store(g, select(ds == V{}, V{}, ds * load<V>(w.slope + r * kScoreStride + c)));
    }
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
