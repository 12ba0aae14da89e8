// Biases of the experts in the backward, on rows sorted by expert.
//
//   grad_bias    db_e = Σ_r w_r · row_r           b_in: (dg, du), all w = 1;  b_out: dout
//   bias_dots    dw_r += b_out,e · dout_r         the part of dw that no column of h has
//
// Reads: rows of gradients, the weights of the tokens, b_out.
// Writes: grad_bias one row for each expert; bias_dots the last of each row's dots.
// Task: grad_bias kBiasColumns columns of one expert; bias_dots one segment.
// Order of sums: an expert's rows in order, chains of kDepthBlock of them, then a chain of those; a dot product by lanes of a vector,
// then a fixed tree.

#include "moe/cpu/kernels/experts_common.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

/// to[c] += w · row[c] for rows [first, last) of type R, in order.
template <class R, class T>
void add_rows(const GradBiasParams& p, int64_t first, int64_t last, int64_t column, int64_t n,
              T* to) {
  using V = Native<T>;
  for (int64_t r = first; r < last; ++r) {
    const V weight =
        splat<V>(p.weights ? static_cast<const T*>(p.weights)[p.rows.permutation[r]] : T(1));
    for_row<T>(sorted_row<R>(p.rows, r, column), p.rows.matrix.column_stride, n,
               [=](int64_t c, V v) { store(to + c, madd(weight, v, load<V>(to + c))); });
  }
}

/// Chains of kDepthBlock rows, and a chain of those.
template <class S>
void grad_bias_task(const GradBiasParams& p, int64_t task) {
  using T = Accumulate<S>;
  using V = Native<T>;
  const int64_t blocks = ceil_div(p.N, kBiasColumns), e = task / blocks;
  const int64_t n0 = task % blocks * kBiasColumns, n = at_most(kBiasColumns, p.N - n0);
  alignas(64) T sums[kBiasColumns] = {}, chain[kBiasColumns];
  for (int64_t first = p.offsets[e]; first < p.offsets[e + 1]; first += kDepthBlock) {
    const int64_t last = at_most(p.offsets[e + 1], first + kDepthBlock);
    __builtin_memset(chain, 0, sizeof(chain));
    if (p.rows.operands)
      add_rows<Operand<S>>(p, first, last, n0, n, chain);
    else
      add_rows<S>(p, first, last, n0, n, chain);
    for (int64_t c = 0; c < kBiasColumns; c += kLanes<T>)
      store(sums + c, load<V>(sums + c) + load<V>(chain + c));
  }
  store_row(static_cast<S*>(p.grad) + e * p.N + n0, sums, n);
}

template <class S>
void bias_dots_task(const HiddenParams& p, int64_t task) {
  using T = Accumulate<S>;
  using V = Native<T>;
  const Segment segment = p.segments[task];
  const ExpertRows& bias = p.b_out;
  const S* const row = static_cast<const S*>(bias.data) + segment.expert * bias.expert_stride;
  for (int64_t r = segment.first; r < segment.first + segment.rows; ++r) {
    const auto* const grad = sorted_row<Operand<S>>(p.grad, r, 0);
    V dot{};
    for (int64_t c = 0; c < p.H; c += kLanes<T>)
      dot = madd(load_strided<V>(row + c * bias.column_stride, bias.column_stride, p.H - c),
                 load_strided<V>(grad + c, 1, p.H - c), dot);
    static_cast<T*>(p.dots)[(r + 1) * p.dot_parts - 1] = sum(dot);
  }
}

}  // namespace

void moe_experts_grad_bias(const GradBiasParams& p, int64_t task, void*) {
  with_storage(p.dtype, [&](auto s) { grad_bias_task<decltype(s)>(p, task); });
}

void moe_experts_bias_dots(const HiddenParams& p, int64_t task, void*) {
  with_storage(p.dtype, [&](auto s) { bias_dots_task<decltype(s)>(p, task); });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
