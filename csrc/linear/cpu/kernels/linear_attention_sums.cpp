// Sums that the tasks of linear attention's backward leave, added up.
//   dlog_decay_t = Σ_units parts_t, over batch and positions where one decay serves them all      dbonus = Σ_sequences parts
//   dquery, dkey = Σ_parts of a group of heads
//
// Reads: decay_sums, bonus_sums, query_sums, key_sums.
// Writes: the gradients of log_decay by head or position, of bonus, and of query and key that large groups share.
// Task: rows of them: (B,H), or heads; positions of (B,Hk).
// Order of sums: units in order; batch entries and positions in order, in float64; sequences, parts of groups in order.

#include "linear/cpu/kernels/linear_params.h"
#include "linear/cpu/kernels/stage.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

/// The units of one row (b,h), from position t on.
template <class V>
V sum_units(const LinearAttentionBackwardParams& p, int64_t row, int64_t t, int64_t left) {
  const auto* const parts = static_cast<const Element<V>*>(p.decay_sums) + row * p.N + t;
  V sum{};
  for (int64_t u = 0; u < p.units(); ++u) sum += load_first<V>(parts + u * p.B * p.H * p.N, left);
  return sum;
}

template <class S>
void sum_decays(const LinearAttentionBackwardParams& p, int64_t first, int64_t last) {
  using V = Native<Accumulate<S>>;
  constexpr int W = kWidth<V>;
  for (int64_t row = first; row < last; ++row) {
    if (!p.decay_of_heads) {
      with_stored<S>(p.log_decay.float32, [&](auto stored) {
        auto* const to = static_cast<decltype(stored)*>(p.grad_log_decay) + row * p.N;
        for (int64_t t = 0; t < p.N; t += W)
          store_up_to(to + t, sum_units<V>(p, row, t, p.N - t), p.N - t);
      });
      continue;
    }
    double total = 0;
    for (int64_t b = 0; b < p.B; ++b)
      for (int64_t t = 0; t < p.N; t += W) {
        const V sums = sum_units<V>(p, b * p.H + row, t, p.N - t);
        for (int i = 0; i < W && t + i < p.N; ++i) total += static_cast<double>(sums[i]);
      }
    store_number<S>(p.grad_log_decay, p.log_decay.float32, row, static_cast<Accumulate<S>>(total));
  }
}

template <class S>
void sum_bonus(const LinearAttentionBackwardParams& p, int64_t first, int64_t last) {
  using T = Accumulate<S>;
  for (int64_t i = first * p.D; i < last * p.D; ++i) {
    T sum = 0;
    for (int64_t s = 0; s < p.sequences; ++s)
      sum += static_cast<const T*>(p.bonus_sums)[s * p.H * p.D + i];
    store_number<S>(p.grad_bonus, p.bonus.float32, i, sum);
  }
}

/// Rows of D numbers, of which there are `rows` in each part.
template <class S>
void sum_parts(const LinearAttentionBackwardParams& p, const void* sums, int64_t rows,
               int64_t first, int64_t last, void* grad) {
  using T = Accumulate<S>;
  using V = Native<T>;
  const int64_t end = last * p.D;
  for (int64_t i = first * p.D; i < end; i += kWidth<V>) {
    V sum{};
    for (int64_t part = 0; part < p.group_parts(); ++part)
      sum += load_first<V>(static_cast<const T*>(sums) + part * rows * p.D + i, end - i);
    store_up_to(static_cast<S*>(grad) + i, sum, end - i);
  }
}

}  // namespace

void linear_attention_query_sums(const LinearAttentionBackwardParams& p, int64_t first,
                                 int64_t last) {
  with_storage(p.dtype, [&](auto s) {
    sum_parts<decltype(s)>(p, p.query_sums, p.B * p.Hk * p.N, first, last, p.grad_query);
  });
}

void linear_attention_key_sums(const LinearAttentionBackwardParams& p, int64_t first,
                               int64_t last) {
  with_storage(p.dtype, [&](auto s) {
    sum_parts<decltype(s)>(p, p.key_sums, p.B * p.Hk * p.M, first, last, p.grad_key);
  });
}

void linear_attention_decay_sums(const LinearAttentionBackwardParams& p, int64_t first,
                                 int64_t last) {
  with_storage(p.dtype, [&](auto s) { sum_decays<decltype(s)>(p, first, last); });
}

void linear_attention_bonus_sums(const LinearAttentionBackwardParams& p, int64_t first,
                                 int64_t last) {
  with_storage(p.dtype, [&](auto s) { sum_bonus<decltype(s)>(p, first, last); });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
