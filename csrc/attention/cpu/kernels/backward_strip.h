// The backward's strips in registers: P from the scores, and dS from dP, of softmax without dropout (backward.h).
#pragma once

#include "attention/cpu/kernels/packed.h"
#include "attention/cpu/kernels/register_strip.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// What MR rows bring: operands, and per row lse, δ and the incoming gradient of lse.
template <class E>
struct GradientRows {
  MatrixA<E> query, grad_out;
  const Accumulate<E>*lse, *delta, *grad_lse;

  GradientRows rows_from(int64_t r) const {
    return {{query.data + r * query.row_stride, query.row_stride, query.step_stride},
            {grad_out.data + r * grad_out.row_stride, grad_out.row_stride, grad_out.step_stride},
            lse + r,
            delta + r,
            grad_lse + r};
  }
};

/// P of MR rows: NV vectors of columns from c on, the start of a panel. This function and the next stand alone, else g++ 12
/// keeps what exp needs in registers that the products need.
template <int MR, int NV, class E, class Scores>
__attribute__((noinline)) void weigh_scores(const AttentionParams& p, const Tile& t,
                                            const GradientRows<E>& rows, const E* key, int64_t c,
                                            const Scores& scores_of, Accumulate<E>* scores) {
  using T = Accumulate<E>;
  using V = Native<T>;
  V products[MR][NV] = {};
  multiply_columns(t, scores_of, rows.query, key, p.D, c, products);
#pragma GCC unroll 6
  for (int r = 0; r < MR; ++r) {
    const Weigh<E> weigh(p, finite_base(rows.lse[r]));
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      const int64_t column = c + j * kLanes<T>;
      const V weight = weigh(scores_of(r, column, products[r][j]));
      store(scores + r * kScoreStride + column, scores_of.where_kept(r, column, weight));
    }
  }
}

/// dP of the same columns, or, `finished`, dS = P∘(dP − δ).
template <int MR, int NV, bool finished, class E, class Scores>
__attribute__((noinline)) void weigh_grads(const AttentionParams& p, const Tile& t,
                                           const GradientRows<E>& rows, const E* value, int64_t c,
                                           const Scores& scores_of, const Accumulate<E>* scores,
                                           Accumulate<E>* grads) {
  using T = Accumulate<E>;
  using V = Native<T>;
  V incoming[MR][NV] = {};
  multiply_columns(t, scores_of, rows.grad_out, value, p.Dv, c, incoming);
#pragma GCC unroll 6
  for (int r = 0; r < MR; ++r) {
    const V delta = splat<V>(rows.delta[r]);
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      const int64_t column = c + j * kLanes<T>, at = r * kScoreStride + column;
      V g = incoming[r][j];
      if constexpr (finished) g = load<V>(scores + at) * (g - delta);
      store(grads + at, scores_of.where_kept(r, column, g));
    }
  }
}

/// dS from P and dP of a row whose every key lies in the tile: δ is Σ_j P·dP over Σ_j P, which is 1 without a sink but for the
/// rounding of lse. What should cancel in dP − δ then does, with one key to exactly 0.
template <class T, class Scores>
FULGURITE_INLINE void finish_whole_row(const AttentionParams& p, const Tile& t, int64_t r,
                                       T grad_lse, const Scores& scores_of, const T* scores,
                                       T* grads) {
  using V = Native<T>;
  V dot{}, total{};
  for (int64_t c = t.c0; c < t.c1; c += kLanes<T>) {
    const V probability = load<V>(scores + c);
    dot = madd(probability, load<V>(grads + c), dot);
    total += probability;
  }
  const T mean = p.sink ? sum(dot) : sum(dot) / sum(total);
  const V delta = splat<V>(mean - grad_lse);
  for (int64_t c = t.c0; c < t.c1; c += kLanes<T>) {
    const V ds = load<V>(scores + c) * (load<V>(grads + c) - delta);
    store(grads + c, scores_of.where_kept(r, c, ds));
  }
}

/// P and dS of a strip; `whole`: every key in reach of its rows lies in the tile.
template <class E, class Scores>
FULGURITE_INLINE void gradients_in_registers(const AttentionParams& p, const Tile& t, bool whole,
                                             const GradientRows<E>& strip,
                                             const PackedBlock<E>& packed,
                                             const Scores& strip_scores, Accumulate<E>* scores,
                                             Accumulate<E>* grads) {
  for_strips(t.rows, [&](auto count, int64_t r0) {
    constexpr int MR = decltype(count)::value;
    const GradientRows<E> rows = strip.rows_from(r0);
    const Scores scores_of = strip_scores.rows_from(r0);
    Accumulate<E>*const p0 = scores + r0 * kScoreStride, *const ds0 = grads + r0 * kScoreStride;
    const auto weigh = [&](auto finished) {
      for_panels<E>(t, scores_of, [&](auto vectors, int64_t c) {
        constexpr int NV = decltype(vectors)::value;
        weigh_scores<MR, NV, E>(p, t, rows, packed.key_transposed, c, scores_of, p0);
        weigh_grads<MR, NV, decltype(finished)::value, E>(p, t, rows, packed.value_transposed, c,
                                                          scores_of, p0, ds0);
      });
    };
    if (!whole) return weigh(std::true_type{});
    weigh(std::false_type{});
    for (int r = 0; r < MR; ++r)
      finish_whole_row(p, t, r, rows.grad_lse[r], scores_of, p0 + r * kScoreStride,
                       ds0 + r * kScoreStride);
  });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
