// What the passes of the backward share: a block of query rows with its incoming gradients, and P and dS of one tile.
//
//   P = exp(s − lse)    δ_i = Σ_d dO·O − g_lse    dP = dO·Vᵀ    dS = P∘(dP − δ)       softmax
//   P = a(s)                                      dP = dO·Vᵀ    dS = a'(s)∘dP         relu2, laplace
//
// Dropout multiplies P (in dV) and dP by its keep factors; softcap multiplies dS by 1 − tanh² on the way to the product.
#pragma once

#include "attention/cpu/activation.h"
#include "attention/cpu/tile.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

template <class T>
struct BackwardScratch {
  T *query, *grad_out, *lse, *delta;  // of one block of query rows
  T *scores, *grad_scores;            // P and dS of a tile
  T* slope;                           // of the softcap
  T* keep;                            // one row of dropout factors
  int64_t query_ld, out_ld, key_ld, value_ld;
  bool query_finite, grad_out_finite;

  BackwardScratch(const AttentionParams& p, Arena& arena)
      : query_ld(pad_lanes<T>(p.D)),
        out_ld(pad_lanes<T>(p.Dv)),
        key_ld(pad_columns<T>(p.D)),
        value_ld(pad_columns<T>(p.Dv)) {
    query = arena.take<T>(kQueryBlock * query_ld);
    grad_out = arena.take<T>(kQueryBlock * out_ld);
    lse = arena.take<T>(kQueryBlock);
    delta = arena.take<T>(kQueryBlock);
    scores = arena.take<T>(kQueryBlock * kScoreStride);
    grad_scores = arena.take<T>(kQueryBlock * kScoreStride);
    slope = p.softcap > 0 ? arena.take<T>(kQueryBlock * kScoreStride) : nullptr;
    keep = p.dropout.active ? arena.take<T>(kScoreStride) : nullptr;
  }
};

/// δ of `rows` rows from `first` on; grad_out holds their gradients in rows of `ld` elements. W rows at a time, transposed in
/// registers, each summed over d in the order in which the micro-kernel sums dP: where a query keeps one key, dP − δ is
/// exactly 0, as it should be.
template <class S>
void row_deltas(const AttentionParams& p, int64_t b, int64_t h, int64_t first, int64_t rows,
                const Accumulate<S>* grad_out, int64_t ld, Accumulate<S>* delta) {
  using T = Accumulate<S>;
  using V = Native<T>;
  constexpr int W = kLanes<T>;
  for (int64_t r0 = 0; r0 < rows; r0 += W) {
    V dot{};
    for (int64_t d0 = 0; d0 < p.Dv; d0 += W) {
      V out[W], grad[W];
      for (int64_t r = 0; r < W; ++r) {
        const bool inside = r0 + r < rows;
        const Strided<S> row = rows_of<S>(p.saved_out, b, h, first + (inside ? r0 + r : 0));
        out[r] = inside ? load_strided<V>(row.data + d0 * row.column_stride, row.column_stride,
                                          p.Dv - d0)
                        : V{};
        grad[r] = inside ? load<V>(grad_out + (r0 + r) * ld + d0) : V{};
      }
      transpose<W / 2>(out);
      transpose<W / 2>(grad);
      for (int64_t d = 0; d < W && d0 + d < p.Dv; ++d) dot = madd(grad[d], out[d], dot);
    }
    store(delta + r0, dot);
  }
  if (!p.grad_lse.data) return;
  for (int64_t r = 0; r < rows; ++r) delta[r] -= *rows_of<T>(p.grad_lse, b, h, first + r).data;
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
  row_deltas<S>(p, b, h, first, rows, w.grad_out, w.out_ld, w.delta);
  for (int64_t r = 0; r < rows; ++r) w.lse[r] = *rows_of<T>(p.saved_lse, b, h, first + r).data;
}

template <class T>
FULGURITE_INLINE void softmax_row(const Tile& t, int64_t r, BackwardScratch<T>& w) {
  using V = Native<T>;
  const T lse =
      w.lse[r] == kHidden<T> ? T(0) : w.lse[r];  // nothing kept: every score of the row is −inf
  for (int64_t c = t.c0; c < t.c1; c += kLanes<T>) {
    T* const s = w.scores + r * kScoreStride + c;
    T* const g = w.grad_scores + r * kScoreStride + c;
    const V score = load<V>(s);
    const IntOf<V> hidden = score == kHidden<T>;
    const V probability = select(hidden, V{}, exp(score - lse));
    store(s, probability);
    store(g, select(hidden, V{}, probability * (load<V>(g) - w.delta[r])));
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
                   BackwardScratch<Accumulate<S>>& w) {
  using T = Accumulate<S>;
  const int64_t packed = packed_index(p, t.b, t.h / p.group, t.j0 / kKeyBlock) * kKeyBlock;
  const T* const key = static_cast<const T*>(p.key_transposed) + packed * p.D;
  const T* const value = static_cast<const T*>(p.value_transposed) + packed * p.Dv;
  score_tile<T>(p, rule, t, w.query, w.query_ld, key, w.scores, w.slope);
  gemm<T>(t.rows, t.c1 - t.c0, p.Dv, {w.grad_out, w.out_ld, 1},
          {value + t.c0 * p.Dv, p.Dv * kTileColumns<T>}, w.grad_scores + t.c0, kScoreStride, false);
  for (int64_t r = 0; r < t.rows; ++r) {
    if (p.dropout.active) {
      for (int64_t c = t.c0; c < t.c1; ++c) w.keep[c] = 1;
      drop(p, t, r, w.keep);
      for (int64_t c = t.c0; c < t.c1; ++c) w.grad_scores[r * kScoreStride + c] *= w.keep[c];
    }
    if (p.score == ScoreKind::kSoftmax)
      softmax_row(t, r, w);
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
