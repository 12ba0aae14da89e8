// Partial results over different keys become one: partial r of a row has out_r and lse_r.
//
//   m = max_r lse_r      Σ = Σ_r exp(lse_r − m)      lse = m + log Σ      w_r = exp(lse_r − m)/Σ      out = Σ_r w_r·out_r
//   dout_r = w_r·g_out            dlse_r = w_r·(g_out·out_r − Σ_s w_s·g_out·out_s + g_lse)
// A partial whose lse is −inf kept nothing: it is not read, and its gradients are 0. Those of +inf outweigh all others and count
// alike: exp(lse_r − m) is 1 where lse_r = m, also where both are infinite. exp(lse_r − lse) would take over the
// rounding of lse, which is all of log Σ where lse is large; a softmax sums to 1 wherever it lies.
//
// Reads: outs and lses of the partials; backward the incoming gradients too.
// Writes: out and lse; backward the gradients of every out and lse that are wanted.
// Task: a range of rows.
// Order of sums: over the partials in their order; a dot product by lanes of a vector, then a fixed tree.

#include "attention/cpu/kernels/merge.h"
#include "simd/kernel.h"
#include "simd/math.h"
#include "simd/pack.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class T>
inline constexpr T kInfinity = static_cast<T>(__builtin_inf());

template <class T>
FULGURITE_INLINE T exp_of(T x) {
  return exp(splat<Native<T>>(x))[0];
}
template <class T>
FULGURITE_INLINE T lse_of(const MergeParams& p, int64_t r, int64_t row) {
  return static_cast<const T*>(p.lses[r])[row];
}

/// What the partials of one row weigh.
template <class T>
struct RowWeights {
  bool empty = true;  // no partial kept anything
  T base = 0, sum = 0;

  FULGURITE_INLINE RowWeights(const MergeParams& p, int64_t row) {
    T max = -kInfinity<T>;
    for (int64_t r = 0; r < p.R; ++r) {
      const T lse = lse_of<T>(p, r, row);
      empty &= lse == -kInfinity<T>;
      if (lse > max) max = lse;
    }
    if (empty) return;
    base = max == -kInfinity<T> ? T(0) : max;  // of NaN and −inf
    for (int64_t r = 0; r < p.R; ++r) sum += exponential(lse_of<T>(p, r, row));
  }
  FULGURITE_INLINE T lse() const {
    return empty ? -kInfinity<T> : base + static_cast<T>(__builtin_log(sum));
  }
  FULGURITE_INLINE T exponential(T partial) const {
    return exp_of(partial == base ? T(0) : partial - base);
  }
  FULGURITE_INLINE T operator()(T partial) const { return exponential(partial) / sum; }
};

template <class S>
void merge_rows(const MergeParams& p, int64_t first, int64_t last) {
  using T = Accumulate<S>;
  using V = Native<T>;
  for (int64_t row = first; row < last; ++row) {
    const RowWeights<T> weight(p, row);
    static_cast<T*>(p.lse)[row] = weight.lse();
    S* const out = static_cast<S*>(p.out) + row * p.D;
    for (int64_t d = 0; d < p.D; d += kLanes<T>) {
      const int64_t left = p.D - d;
      V sum{};
      for (int64_t r = 0; r < p.R; ++r) {
        const T partial = lse_of<T>(p, r, row);
        if (partial == -kInfinity<T>) continue;
        const S* const from = static_cast<const S*>(p.outs[r]) + row * p.D + d;
        sum = madd(splat<V>(weight(partial)), load_strided<V>(from, 1, left), sum);
      }
      store_up_to(out + d, sum, left);
    }
  }
}

/// g_out·out_r of one row.
template <class S>
FULGURITE_INLINE Accumulate<S> dot(const MergeParams& p, int64_t r, int64_t row) {
  using T = Accumulate<S>;
  using V = Native<T>;
  V total{};
  for (int64_t d = 0; d < p.D; d += kLanes<T>)
    total =
        madd(load_strided<V>(static_cast<const S*>(p.grad_out) + row * p.D + d, 1, p.D - d),
             load_strided<V>(static_cast<const S*>(p.outs[r]) + row * p.D + d, 1, p.D - d), total);
  return sum(total);
}

template <class S>
void merge_backward_rows(const MergeParams& p, int64_t first, int64_t last) {
  using T = Accumulate<S>;
  using V = Native<T>;
  for (int64_t row = first; row < last; ++row) {
    const RowWeights<T> weight_of(p, row);
    const T grad_lse = p.grad_lse ? static_cast<const T*>(p.grad_lse)[row] : T(0);
    T mean = 0;  // Σ_s w_s·g_out·out_s
    for (int64_t r = 0; r < p.R && p.grad_out; ++r) {
      const T partial = lse_of<T>(p, r, row);
      if (partial != -kInfinity<T>) mean += weight_of(partial) * dot<S>(p, r, row);
    }
    for (int64_t r = 0; r < p.R; ++r) {
      const T partial = lse_of<T>(p, r, row);
      const bool kept = partial != -kInfinity<T>;
      const T weight = kept ? weight_of(partial) : T(0);
      if (p.grad_lses[r]) {
        const T difference = kept && p.grad_out ? dot<S>(p, r, row) - mean : T(0);
        static_cast<T*>(p.grad_lses[r])[row] = kept ? weight * (difference + grad_lse) : T(0);
      }
      if (!p.grad_outs[r]) continue;
      S* const to = static_cast<S*>(p.grad_outs[r]) + row * p.D;
      for (int64_t d = 0; d < p.D; d += kLanes<T>) {
        const int64_t left = p.D - d;
        V grad{};
        if (kept && p.grad_out)
          grad =
              weight * load_strided<V>(static_cast<const S*>(p.grad_out) + row * p.D + d, 1, left);
        store_up_to(to + d, grad, left);
      }
    }
  }
}

}  // namespace

void attention_merge(const MergeParams& p, int64_t first, int64_t last) {
  with_storage(p.dtype, [&](auto s) { merge_rows<decltype(s)>(p, first, last); });
}

void attention_merge_backward(const MergeParams& p, int64_t first, int64_t last) {
  with_storage(p.dtype, [&](auto s) { merge_backward_rows<decltype(s)>(p, first, last); });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
