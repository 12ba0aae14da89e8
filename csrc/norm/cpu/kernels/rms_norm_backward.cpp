// Gradients of rms_norm. With w_i = weight_i + weight_shift and c = Σ_i dout_i·w_i·x_i of a row,
//   dx_i = rstd·(dout_i·w_i − x_i·rstd²·(c / H))      dweight_i = Σ_rows dout_i·(x_i·rstd)
//
// Reads: x, weight, grad_out, of any strides; rstd.
// Writes: grad_x; sums of a block of rows, which rms_norm_sums adds up to grad_weight.
// Task: a block of rows, whose number depends on the sizes alone; sums: a range of columns.
// Order of sums: c as the forward's sum of squares; dweight row by row in a block, then over blocks in order.

#include "norm/cpu/kernels/rows.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class S>
struct BackwardScratch {
  using T = Accumulate<S>;
  T* factors;
  S *x, *grad_out;

  BackwardScratch(void* base, const RmsNormBackwardParams& p) : BackwardScratch(Arena(base), p) {}
  int64_t bytes() const { return bytes_; }

 private:
  BackwardScratch(Arena arena, const RmsNormBackwardParams& p)
      : factors(arena.take<T>(p.H)),
        x(arena.take<S>(p.x_stride == 1 ? 0 : p.H)),
        grad_out(arena.take<S>(p.grad_out_stride == 1 ? 0 : p.H)),
        bytes_(arena.used()) {}
  int64_t bytes_;
};

/// c
template <class S, class T>
FULGURITE_INLINE T along_row(const S* x, const S* grad, const T* factors, int64_t n) {
  using V = Native<T>;
  V sums[kSums] = {};
  each_vector<V>(n, [&](int64_t i, int k, int64_t left) {
    const V scaled = load_first<V>(grad + i, left) * load_first<V>(factors + i, left);
    sums[k] = madd(scaled, load_first<V>(x + i, left), sums[k]);
  });
  return total(sums);
}

/// grad_x of a row, `slope` = rstd²·(c / H), and its part of grad_weight; `sums` goes on to the end of a vector.
template <bool kX, bool kWeight, class S, class T>
FULGURITE_INLINE void spread(const S* x, const S* grad, const T* factors, T rstd, T slope,
                             int64_t n, S* grad_x, T* sums) {
  using V = Native<T>;
  const V r = splat<V>(rstd), along = splat<V>(-slope);
  each_vector<V>(n, [&](int64_t i, int, int64_t left) {
    const V v = load_first<V>(x + i, left), g = load_first<V>(grad + i, left);
    if constexpr (kX)
      store_first(grad_x + i, madd(v, along, g * load_first<V>(factors + i, left)) * r, left);
    if constexpr (kWeight) store(sums + i, madd(g, v * r, load<V>(sums + i)));
  });
}

template <bool kX, bool kWeight, class S>
void backward_block(const RmsNormBackwardParams& p, int64_t block, void* memory) {
  using T = Accumulate<S>;
  const BackwardScratch<S> s(memory, p);
  const T* const weight = factors<S>(p, s.factors);
  T* const sums = static_cast<T*>(p.sums) + (kWeight ? block * rms_norm_padded(p.H) : 0);
  if constexpr (kWeight)
    for (int64_t i = 0; i < rms_norm_padded(p.H); ++i) sums[i] = 0;
  const int64_t first = block * p.rows_per_block,
                last = first + p.rows_per_block < p.rows ? first + p.rows_per_block : p.rows;
  each_row(p, first, last, [&](int64_t row, int64_t x_at, int64_t grad_at) {
    const S* const x = neighbours(static_cast<const S*>(p.x) + x_at, p.x_stride, p.H, s.x);
    const S* const grad =
        neighbours(static_cast<const S*>(p.grad_out) + grad_at, p.grad_out_stride, p.H, s.grad_out);
    const T rstd = static_cast<const T*>(p.rstd)[row],
            c = kX ? along_row(x, grad, weight, p.H) : T(0),
            slope = rstd * (rstd * (c / static_cast<T>(p.H)));
    S* const grad_x = static_cast<S*>(p.grad_x) + (kX ? row * p.H : 0);
    spread<kX, kWeight>(x, grad, weight, rstd, slope, p.H, grad_x, sums);
  });
}

/// Without sums nothing is added up, without grad_x nothing is stored.
template <class S>
void backward_task(const RmsNormBackwardParams& p, int64_t block, void* memory) {
  if (!p.sums)
    backward_block<true, false, S>(p, block, memory);
  else if (!p.grad_x)
    backward_block<false, true, S>(p, block, memory);
  else
    backward_block<true, true, S>(p, block, memory);
}

template <class S>
void sums_of_columns(const RmsNormBackwardParams& p, int64_t first, int64_t last) {
  using T = Accumulate<S>;
  using V = Native<T>;
  const int64_t blocks = ceil_div(p.rows, p.rows_per_block), ld = rms_norm_padded(p.H);
  for (int64_t i = first; i < last; i += kSums * kWidth<V>)
    with_count<kSums>(ceil_div(last - i, kWidth<V>), [&](auto count) {
      V all[count] = {};
      for (int64_t b = 0; b < blocks; ++b)
        for (int k = 0; k < count; ++k)
          all[k] += load<V>(static_cast<const T*>(p.sums) + b * ld + i + k * kWidth<V>);
      with_weight<S>(p.weight_dtype, [&](auto stored) {
        using X = decltype(stored);
        for (int64_t k = 0; k < count * kWidth<V> && i + k < last; ++k)
          static_cast<X*>(p.grad_weight)[i + k] =
              from_accumulate<X>(all[k / kWidth<V>][k % kWidth<V>]);
      });
    });
}

}  // namespace

void rms_norm_backward_layout(const RmsNormBackwardParams& p, int64_t* bytes) {
  with_storage(p.dtype, [&](auto s) { *bytes = BackwardScratch<decltype(s)>(nullptr, p).bytes(); });
}

void rms_norm_backward(const RmsNormBackwardParams& p, int64_t block, void* scratch) {
  with_storage(p.dtype, [&](auto s) { backward_task<decltype(s)>(p, block, scratch); });
}

/// `first` is a multiple of 16.
void rms_norm_sums(const RmsNormBackwardParams& p, int64_t first, int64_t last) {
  with_storage(p.dtype, [&](auto s) { sums_of_columns<decltype(s)>(p, first, last); });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
