// Rows as vectors of the accumulation type, and the weight that all of them meet.
#pragma once

#include "norm/cpu/kernels/params.h"
#include "simd/kernel.h"
#include "simd/pack.h"
#include "simd/walk.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// Sums of a row that go on side by side: an addition takes as long as four can be begun in.
inline constexpr int kSums = 4;

/// Calls visit(i, k, left) for the vectors of a row of n elements, k the sum that takes it, `left` the elements from i on, all of a
/// vector where it is whole.
template <class V, class Visit>
FULGURITE_INLINE void each_vector(int64_t n, const Visit& visit) {
  constexpr int64_t W = kWidth<V>;
  int64_t i = 0;
  for (; i + kSums * W <= n; i += kSums * W)
#pragma GCC unroll 4
    for (int k = 0; k < kSums; ++k) visit(i + k * W, k, W);
  for (; i < n; i += W) visit(i, 0, n - i);
}

template <class V>
FULGURITE_INLINE Element<V> total(const V (&sums)[kSums]) {
  static_assert(kSums == 4);
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

/// Calls visit(row, x, grad_out) for rows [first, last), with the offsets that they begin at.
template <class Visit>
FULGURITE_INLINE void each_row(const RmsNormProblem& p, int64_t first, int64_t last,
                               const Visit& visit) {
  walk_rows<2>(p.walk, p.layouts, first, last,
               [&](const int64_t* offsets, const int64_t* strides, int64_t n) {
                 for (int64_t i = 0; i < n; ++i)
                   visit(first++, offsets[0] + i * strides[0], offsets[1] + i * strides[1]);
               });
}

/// A row whose elements are neighbours: where it lies, or copied.
template <class S>
FULGURITE_INLINE const S* neighbours(const S* row, int64_t stride, int64_t n, S* copy) {
  if (stride == 1) return row;
  copy_row(row, stride, n, copy);
  return copy;
}

/// Runs visitor(W{}) for the type that a weight beside x of type S is stored in.
template <class S, class Visitor>
FULGURITE_INLINE void with_weight(Dtype dtype, const Visitor& visitor) {
  if constexpr (std::is_same_v<S, double>)
    visitor(double{});
  else if (dtype == Dtype::kFloat32)
    visitor(float{});
  else if (dtype == Dtype::kBFloat16)
    visitor(BFloat16{});
  else
    visitor(Half{});
}

/// weight + weight_shift, or ones: where it lies if nothing is to be added or converted.
template <class S>
const Accumulate<S>* factors(const RmsNormProblem& p, Accumulate<S>* copy) {
  using T = Accumulate<S>;
  if (!p.weight) {
    for (int64_t i = 0; i < p.H; ++i) copy[i] = 1;
    return copy;
  }
  const T* found = copy;
  with_weight<S>(p.weight_dtype, [&](auto stored) {
    using X = decltype(stored);
    const X* const weight = static_cast<const X*>(p.weight);
    if constexpr (std::is_same_v<X, T>)
      if (p.weight_stride == 1 && p.weight_shift == 0) {
        found = weight;
        return;
      }
    const T shift = static_cast<T>(p.weight_shift);
    for (int64_t i = 0; i < p.H; ++i) copy[i] = to_accumulate(weight[i * p.weight_stride]) + shift;
  });
  return found;
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
