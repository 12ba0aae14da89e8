// Rows sorted by expert and back.
//
//   permute    y_p = x_{permutation[p] / K}, 0 where no expert takes the assignment
//   combine    out_t = Σ_j w_tj · y_{inverse[t,j]}, j in order, in the accumulation type, rounded once
//   backward   dy_p = w_tj · dout_t        dw_tj = dout_t · y_{inverse[t,j]}
//
// Reads: rows of x, y or dout, permutation and inverse, weights; grad_y the owner of each row.
// Writes: rows sorted by expert (permute, grad_y), rows of tokens (combine), or the gradient of the weights.
// Task: a range of rows of what is written.
// Order of sums: a token's choices j in order; a dot product by lanes of a vector, then a fixed tree.

#include "moe/cpu/kernels/rows.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class S>
void copy_row(S* to, const S* from, int64_t stride, int64_t n) {
  if (stride == 1) {
    __builtin_memcpy(to, from, sizeof(S) * n);
  } else {
    for (int64_t c = 0; c < n; ++c) to[c] = from[c * stride];
  }
}

/// Calls visit(to) for the rows of (T·K,H) that have an assignment, source(row) ≥ 0; the others are 0.
template <class S, class Source, class Visit>
FULGURITE_INLINE void for_sorted_rows(const CombineParams& p, void* out, int64_t first,
                                      int64_t last, const Source& source, const Visit& visit) {
  for (int64_t row = first; row < last; ++row) {
    S* const to = static_cast<S*>(out) + row * p.H;
    if (const int64_t a = source(row); a >= 0)
      visit(a, to);
    else
      __builtin_memset(to, 0, sizeof(S) * p.H);
  }
}

/// Calls visit(a, row) for the assignments a of token t; row < 0: none of y.
template <class Visit>
FULGURITE_INLINE void for_choices(const CombineParams& p, int64_t t, const Visit& visit) {
  for (int64_t a = t * p.K; a < (t + 1) * p.K; ++a) visit(a, int64_t{p.inverse[a]});
}

/// Calls put(column, vector) for a row of a matrix of S.
template <class S, class Put>
FULGURITE_INLINE void for_matrix_row(const CombineParams& p, const Matrix& matrix, int64_t row,
                                     const Put& put) {
  for_row<Accumulate<S>>(static_cast<const S*>(matrix.data) + row * matrix.row_stride,
                         matrix.column_stride, p.H, put);
}

template <class S>
void permute_rows(const CombineParams& p, int64_t first, int64_t last) {
  const auto source = [&](int64_t row) {
    const int64_t a = p.permutation[row];
    return p.inverse[a] == row ? a : -1;
  };
  for_sorted_rows<S>(p, p.out, first, last, source, [&](int64_t a, S* to) {
    copy_row(to, static_cast<const S*>(p.x.data) + a / p.K * p.x.row_stride, p.x.column_stride,
             p.H);
  });
}

template <class S>
void combine_rows(const CombineParams& p, int64_t first, int64_t last, void* scratch) {
  using T = Accumulate<S>;
  using V = Native<T>;
  T* const acc = static_cast<T*>(scratch);
  for (int64_t t = first; t < last; ++t) {
    for (int64_t c = 0; c < padded_row(p.H); c += kLanes<T>) store(acc + c, V{});
    for_choices(p, t, [&](int64_t a, int64_t row) {
      if (row < 0) return;
      const V weight = splat<V>(p.weights ? static_cast<const T*>(p.weights)[a] : T(1));
      for_matrix_row<S>(p, p.y, row,
                        [&](int64_t c, V v) { store(acc + c, madd(weight, v, load<V>(acc + c))); });
    });
    store_row(static_cast<S*>(p.out) + t * p.H, acc, p.H);
  }
}

template <class S>
void grad_y_rows(const CombineParams& p, int64_t first, int64_t last, void* scratch) {
  using T = Accumulate<S>;
  using V = Native<T>;
  T* const row_grad = static_cast<T*>(scratch);
  const auto source = [&](int64_t row) { return int64_t{p.owner[row]}; };
  for_sorted_rows<S>(p, p.grad_y, first, last, source, [&](int64_t a, S* to) {
    const T weight = p.weights ? static_cast<const T*>(p.weights)[a] : T(1);
    for_matrix_row<S>(p, p.grad, a / p.K, [&](int64_t c, V v) { store(row_grad + c, v * weight); });
    store_row(to, row_grad, p.H);
  });
}

template <class S>
void grad_weight_rows(const CombineParams& p, int64_t first, int64_t last, void* scratch) {
  using T = Accumulate<S>;
  using V = Native<T>;
  T* const g = static_cast<T*>(scratch);
  for (int64_t t = first; t < last; ++t) {
    load_row<S>(p.grad, t, p.H, T(0), g);
    for_choices(p, t, [&](int64_t a, int64_t row) {
      V dot{};
      if (row >= 0)
        for_matrix_row<S>(p, p.y, row, [&](int64_t c, V v) { dot = madd(v, load<V>(g + c), dot); });
      static_cast<T*>(p.grad_weights)[a] = sum(dot);
    });
  }
}

}  // namespace

void moe_permute(const CombineParams& p, int64_t first, int64_t last, void*) {
  with_storage(p.dtype, [&](auto s) { permute_rows<decltype(s)>(p, first, last); });
}

void moe_combine(const CombineParams& p, int64_t first, int64_t last, void* scratch) {
  with_storage(p.dtype, [&](auto s) { combine_rows<decltype(s)>(p, first, last, scratch); });
}

void moe_combine_grad_y(const CombineParams& p, int64_t first, int64_t last, void* scratch) {
  with_storage(p.dtype, [&](auto s) { grad_y_rows<decltype(s)>(p, first, last, scratch); });
}

void moe_combine_grad_weights(const CombineParams& p, int64_t first, int64_t last, void* scratch) {
  with_storage(p.dtype, [&](auto s) { grad_weight_rows<decltype(s)>(p, first, last, scratch); });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
