// The experts' other products, on rows sorted by expert.
//
//   reduce         out_t = Σ_e w_te · (row_te · B_e + bias_e)    forward: h, W_outᵀ and b_out; backward: (dg, du) and W_in, all w = 1
//   grad_weight    dW_e  = Σ_r a_rᵀ b_r                          W_in: (dg, du) and x;  W_out: dout and w·h
//
// Reads: rows as operands, or of the storage type; permutation, offsets, weights of the tokens and of the experts.
// Writes: reduce out, or the sums so far where the experts come in parts; grad_weight the gradient of one weight of every expert.
// Task: reduce a range of tokens by kHiddenBlock columns, over all experts; grad_weight kGradRows × kGradColumns of one expert.
// Order of sums: a token's experts by their number, in the accumulation type, rounded once; an expert's rows in order, a chain for each
// kDepthBlock of them.

#include "moe/cpu/kernels/experts_common.h"
#include "simd/gemm_store.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class S>
struct ReduceScratch {
  using T = Accumulate<S>;
  using E = Operand<S>;
  E* weights;
  T *product, *sums, *bias;

  ReduceScratch(const ReduceParams& p, Arena& arena) {
    weights = arena.take<E>(pad_depth<E>(p.depth) * kHiddenBlock);
    product = arena.take<T>(kTokenBlock * kHiddenBlock);
    sums = arena.take<T>(p.token_range * kHiddenBlock);
    bias = arena.take<T>(kHiddenBlock);
  }
};

/// The first sorted position of expert e whose token is t or later.
FULGURITE_INLINE int64_t position_of_token(const ReduceParams& p, int64_t e, int64_t t) {
  int64_t low = p.offsets[e], high = p.offsets[e + 1];
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (p.permutation[middle] < t * p.K)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

/// Adds products of the rows from `first` on to their tokens' sums.
template <class S>
void add_to_tokens(const ReduceParams& p, int64_t first, int64_t rows, int64_t n, int64_t t0,
                   const ReduceScratch<S>& w) {
  using T = Accumulate<S>;
  using V = Native<T>;
  if (p.bias.data) add_bias(w.bias, rows, n, w.product, kHiddenBlock);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t assignment = p.permutation[first + r];
    const V weight = splat<V>(p.weights ? static_cast<const T*>(p.weights)[assignment] : T(1));
    T* const to = w.sums + (assignment / p.K - t0) * kHiddenBlock;
    for (int64_t c = 0; c < n; c += kLanes<T>)
      store(to + c, madd(weight, load<V>(w.product + r * kHiddenBlock + c), load<V>(to + c)));
  }
}

/// Rows [begin, end) of expert e in columns [h0, h0 + n).
template <class S>
void reduce_expert(const ReduceParams& p, int64_t e, int64_t begin, int64_t end, int64_t h0,
                   int64_t n, int64_t t0, const ReduceScratch<S>& w) {
  using E = Operand<S>;
  const Strided<S> b = matrix_of<S>(p.b, e, 0, h0);
  const auto rows_from = [&](int64_t first) {
    return MatrixA<E>{static_cast<const E*>(p.rows) + first * p.row_width, p.row_width, kStep<E>};
  };
  if (p.bias.data) load_bias<S>(p.bias, e, h0, n, w.bias);
  if (end - begin <= rows_unpacked(b) && p.depth > 0) {
    multiply_few<E>(rows_from(begin), end - begin, b, p.depth, n, w.product, kHiddenBlock);
    return add_to_tokens<S>(p, begin, end - begin, n, t0, w);
  }
  pack_deep(b, p.depth, n, w.weights);
  for_token_blocks(begin, end - begin, [&](int64_t first, int64_t count) {
    int64_t k0 = 0;
    do {  // once also where there is no depth: the product is 0 then
      multiply_block<E>(columns_from(rows_from(first), k0), count, w.weights, k0,
                        at_most(kDepthBlock, p.depth - k0), n, w.product, kHiddenBlock);
    } while ((k0 += kDepthBlock) < p.depth);
    add_to_tokens<S>(p, first, count, n, t0, w);
  });
}

/// Sums of tokens [t0, t1) in columns [h0, h0 + n): 0, or what earlier parts left.
template <class S, class T = Accumulate<S>>
void begin_sums(const ReduceParams& p, int64_t t0, int64_t t1, int64_t h0, int64_t n, T* sums) {
  if (!p.before) {
    __builtin_memset(sums, 0, sizeof(T) * (t1 - t0) * kHiddenBlock);
    return;
  }
  for (int64_t t = t0; t < t1; ++t, sums += kHiddenBlock)
    for_row<T>(static_cast<const T*>(p.before) + t * p.H + h0, 1, n,
               [sums](int64_t c, Native<T> v) { store(sums + c, v); });
}

template <class To, class T>
void end_sums(To* to, int64_t H, int64_t t0, int64_t t1, int64_t h0, int64_t n, const T* sums) {
  for (int64_t t = t0; t < t1; ++t, sums += kHiddenBlock) store_row(to + t * H + h0, sums, n);
}

template <class S>
void reduce_task(const ReduceParams& p, int64_t task, void* scratch) {
  using T = Accumulate<S>;
  Arena arena(scratch);
  ReduceScratch<S> w(p, arena);
  const int64_t blocks = ceil_div(p.H, kHiddenBlock);
  const int64_t t0 = task / blocks * p.token_range, t1 = at_most(p.T, t0 + p.token_range);
  const int64_t h0 = task % blocks * kHiddenBlock, n = at_most(kHiddenBlock, p.H - h0);
  begin_sums<S>(p, t0, t1, h0, n, w.sums);
  for (int64_t e = 0; e < p.E; ++e) {
    const int64_t begin = position_of_token(p, e, t0), end = position_of_token(p, e, t1);
    if (begin < end) reduce_expert<S>(p, e, begin, end, h0, n, t0, w);
  }
  if (p.after)
    end_sums(static_cast<T*>(p.after), p.H, t0, t1, h0, n, w.sums);
  else
    end_sums(static_cast<S*>(p.out), p.H, t0, t1, h0, n, w.sums);
}

// ---- gradients of the weights

/// Rows of a task's part at a time: their operands stay in the first cache beside a panel of B.
inline constexpr int64_t kGradBlock = 96;
inline constexpr int64_t kGradStride = kGradBlock + 16;

template <class S>
struct GradWeightScratch {
  using T = Accumulate<S>;
  using E = Operand<S>;
  E *a, *b;
  T* sums;

  explicit GradWeightScratch(Arena& arena) {
    a = arena.take<E>(kDepthBlock * kGradStride);
    b = arena.take<E>(kDepthBlock * kGradColumns);
    sums = arena.take<T>(kGradRows * kGradColumns);
  }
};

/// Calls put(step, c, vector) for n columns of rows [first, first + count) of type S, which are the depth of the product.
template <class E, class S, class Put>
FULGURITE_INLINE void for_row_steps(const SortedRows& rows, int64_t first, int64_t count,
                                    int64_t column, int64_t n, const Put& put) {
  const int64_t stride = rows.matrix.column_stride;
  for (int64_t r = 0; r < count; r += kStep<E>) {
    const S* const row = sorted_row<S>(rows, first + r, column);
    if constexpr (kStep<E> == 1) {
      for_row<E>(row, stride, n, [&](int64_t c, Native<E> v) { put(r, c, v); });
    } else {
      constexpr int W = kLanes<Accumulate<E>>;
      const S* const next = r + 1 < count ? sorted_row<S>(rows, first + r + 1, column) : nullptr;
      for (int64_t c = 0; c < n; c += W)
        put(r / 2, c,
            load_row_pair<W>(row + c * stride, next ? next + c * stride : nullptr, stride, n - c));
    }
  }
}

/// The same for rows of either type.
template <class E, class S, class Put>
FULGURITE_INLINE void for_sorted_steps(const SortedRows& rows, int64_t first, int64_t count,
                                       int64_t column, int64_t n, const Put& put) {
  if (rows.operands)
    for_row_steps<E, E>(rows, first, count, column, n, put);
  else
    for_row_steps<E, S>(rows, first, count, column, n, put);
}

template <class S>
void grad_weight_task(const GradWeightParams& p, int64_t task, void* scratch) {
  using E = Operand<S>;
  using T = Accumulate<S>;
  using Lanes = typename StepOf<E>::Moves;
  Arena arena(scratch);
  GradWeightScratch<S> w(arena);
  const int64_t row_blocks = ceil_div(p.M, kGradRows), column_blocks = ceil_div(p.N, kGradColumns);
  const int64_t e = task / column_blocks / row_blocks;
  const int64_t m0 = task / column_blocks % row_blocks * kGradRows,
                m = at_most(kGradRows, p.M - m0);
  const int64_t n0 = task % column_blocks * kGradColumns, n = at_most(kGradColumns, p.N - n0);
  const int64_t begin = p.offsets[e], end = p.offsets[e + 1], columns = pad_columns<E>(n);
  S* const to = static_cast<S*>(p.grad) + (e * p.M + m0) * p.N + n0;
  for (int64_t first = begin; first < end; first += kDepthBlock) {
    const int64_t rows = at_most(kDepthBlock, end - first), depth = pad_depth<E>(rows);
    for_sorted_steps<E, S>(p.b, first, rows, n0, n, [&](int64_t step, int64_t c, Lanes v) {
      store(w.b + packed_at<E>(step, c, depth, columns), v);
    });
    for (int64_t r = 0; r < m; r += kGradBlock) {
      const int64_t count = at_most(kGradBlock, m - r);
      for_sorted_steps<E, S>(p.a, first, rows, m0 + r, count,
                             [&](int64_t step, int64_t c, Lanes v) {
                               store(w.a + (step * kGradStride + c) * kStep<E>, v);
                             });
      const MatrixA<E> a{w.a, kStep<E>, kStep<E> * kGradStride};
      const PanelsB<E> b{w.b, depth, columns};
      T* const sums = w.sums + r * kGradColumns;
      if (first + rows < end)
        gemm<E>(count, n, steps<E>(rows), a, b, sums, kGradColumns, first > begin);
      else
        gemm_store<E>(count, n, steps<E>(rows), a, b, sums, kGradColumns, first > begin,
                      to + r * p.N, p.N);
    }
  }
  for (int64_t r = 0; r < m && begin == end; ++r) __builtin_memset(to + r * p.N, 0, sizeof(S) * n);
}

}  // namespace

void moe_experts_reduce(const ReduceParams& p, int64_t task, void* scratch) {
  with_storage(p.dtype, [&](auto s) { reduce_task<decltype(s)>(p, task, scratch); });
}

void moe_experts_reduce_layout(const ReduceParams& p, int64_t* scratch_bytes) {
  with_storage(p.dtype, [&](auto s) {
    Arena arena(nullptr);
    ReduceScratch<decltype(s)> measure(p, arena);
    *scratch_bytes = arena.used();
  });
}

void moe_experts_grad_weight(const GradWeightParams& p, int64_t task, void* scratch) {
  with_storage(p.dtype, [&](auto s) { grad_weight_task<decltype(s)>(p, task, scratch); });
}

void moe_experts_grad_weight_layout(const GradWeightParams& p, int64_t* scratch_bytes) {
  with_storage(p.dtype, [&](auto s) {
    Arena arena(nullptr);
    GradWeightScratch<decltype(s)> measure(arena);
    *scratch_bytes = arena.used();
  });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
