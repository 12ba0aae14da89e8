// Rows divided by the root of their mean square,
//   rstd = 1 / √(Σ_i x_i² / H + eps)      out_i = (x_i·rstd)·(weight_i + weight_shift)
//
// Reads: x and weight, of any strides.
// Writes: out, and rstd where it is wanted, contiguous.
// Task: a range of rows.
// Order of sums: four sums of vectors go on side by side over a row, then they and their lanes are added in a tree.

#include "norm/cpu/kernels/rows.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class S>
struct ForwardScratch {
  using T = Accumulate<S>;
  T* factors;
  S* row;

  ForwardScratch(void* base, const RmsNormProblem& p) : ForwardScratch(Arena(base), p) {}
  int64_t bytes() const { return bytes_; }

 private:
  ForwardScratch(Arena arena, const RmsNormProblem& p)
      : factors(arena.take<T>(p.H)),
        row(arena.take<S>(p.x_stride == 1 ? 0 : p.H)),
        bytes_(arena.used()) {}
  int64_t bytes_;
};

template <class S>
FULGURITE_INLINE Accumulate<S> sum_of_squares(const S* x, int64_t n) {
  using V = Native<Accumulate<S>>;
  V sums[kSums] = {};
  each_vector<V>(n, [&](int64_t i, int k, int64_t left) {
    const V v = load_first<V>(x + i, left);
    sums[k] = madd(v, v, sums[k]);
  });
  return total(sums);
}

template <class S, class T>
FULGURITE_INLINE void scale(const S* x, T rstd, const T* factors, int64_t n, S* out) {
  using V = Native<T>;
  const V r = splat<V>(rstd);
  each_vector<V>(n, [&](int64_t i, int, int64_t left) {
    store_first(out + i, load_first<V>(x + i, left) * r * load_first<V>(factors + i, left), left);
  });
}

template <class S>
void forward_task(const RmsNormParams& p, int64_t task, void* memory) {
  using T = Accumulate<S>;
  const ForwardScratch<S> s(memory, p);
  const T* const weight = factors<S>(p, s.factors);
  const int64_t first = task * p.rows_per_task,
                last = first + p.rows_per_task < p.rows ? first + p.rows_per_task : p.rows;
  each_row(p, first, last, [&](int64_t row, int64_t at, int64_t) {
    const S* const x = neighbours(static_cast<const S*>(p.x) + at, p.x_stride, p.H, s.row);
    const T mean = sum_of_squares(x, p.H) / static_cast<T>(p.H),
            rstd = 1 / sqrt(mean + static_cast<T>(p.eps));
    scale(x, rstd, weight, p.H, static_cast<S*>(p.out) + row * p.H);
    if (p.rstd) static_cast<T*>(p.rstd)[row] = rstd;
  });
}

}  // namespace

void rms_norm_layout(const RmsNormParams& p, int64_t* bytes) {
  with_storage(p.dtype, [&](auto s) { *bytes = ForwardScratch<decltype(s)>(nullptr, p).bytes(); });
}

void rms_norm(const RmsNormParams& p, int64_t task, void* scratch) {
  with_storage(p.dtype, [&](auto s) { forward_task<decltype(s)>(p, task, scratch); });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
