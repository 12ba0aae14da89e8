// Passes over lists of gradients: statistics (read only) and unscaling.
//   grad_stats  Σ (grad·inv_scale)² in float64
//   unscale     grad = grad·inv_scale, rounded once
//
// Reads: gradients of any strides.
// Writes: grad_stats a sum for each block and whether it has a NaN or Inf; unscale the gradients, and says whether one was not finite.
// Task: grad_stats some blocks of kStatsBlock elements of one tensor, in logical order; unscale a range of positions (simd/walk.h).
// Order of sums: the tree of rules/stats_tree.h; the caller adds blocks and tensors.

#include "amp/cpu/kernels/params.h"
#include "amp/rules/stats_tree.h"
#include "simd/convert.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

/// Runs visitor(S{}) for the storage type S of dtype.
template <class Visitor>
FULGURITE_INLINE void with_storage(Dtype dtype, const Visitor& visitor) {
  switch (dtype) {
    case Dtype::kFloat64: return visitor(double{});
    case Dtype::kFloat32: return visitor(float{});
    case Dtype::kBFloat16: return visitor(BFloat16{});
    case Dtype::kFloat16: return visitor(Half{});
  }
}

/// All bits of a lane set where x is NaN or Inf.
template <class V>
FULGURITE_INLINE IntOf<V> not_finite(V x) {
  return ~(abs(x) <= splat<V>(sizeof(Element<V>) == 8 ? static_cast<Element<V>>(__DBL_MAX__)
                                                      : static_cast<Element<V>>(__FLT_MAX__)));
}

template <class I>
FULGURITE_INLINE bool any(I mask) {
  bool found = false;
  for (int i = 0; i < kWidth<I>; ++i) found |= mask[i] != 0;
  return found;
}

/// One native vector of float64 from storage S, by way of float32 where S has 16 bits.
template <class S>
FULGURITE_INLINE Native<double> load_double(const S* p) {
  if constexpr (sizeof(S) == 2)
    return convert<Native<double>>(load_as<Vec<float, kLanes<double>>>(p));
  else
    return load_as<Native<double>>(p);
}

/// A NaN or Inf among n dense elements.
template <class S>
bool has_not_finite(const S* x, int64_t n) {
  using V = Native<double>;
  IntOf<V> mask{};
  for (int64_t i = 0; i < n; i += kWidth<V>) {
    S last[kWidth<V>] = {};
    for (int64_t k = 0; k < kWidth<V> && i + k < n; ++k) last[k] = x[i + k];
    mask |= not_finite(load_double(last));
  }
  return any(mask);
}

/// Sums over n ≤ kStatsBlock dense elements.
template <class S>
void block_stats(const S* x, int64_t n, double inv_scale, double& sum, bool& bad) {
  using V = Native<double>;
  constexpr int W = kLanes<double>, kPieces = kTreeLanes / W;
  V lanes[kPieces] = {};
  const auto add = [&](const S* p) {
    for (int k = 0; k < kPieces; ++k)
      lanes[k] = lanes[k] + scaled_square(load_double(p + k * W), inv_scale);
  };
  int64_t i = 0;
  for (; i + kTreeLanes <= n; i += kTreeLanes) add(x + i);
  if (i < n) {
    S last[kTreeLanes] = {};
    for (int64_t k = 0; i + k < n; ++k) last[k] = x[i + k];
    add(last);
  }
  double tree[kTreeLanes];
  for (int k = 0; k < kPieces; ++k) store(tree + k * W, lanes[k]);
  sum = sum_of_lanes(tree);
  // What is not finite makes the sum so; a sum may also overflow, or the scale be 0, by itself.
  bad = !(sum <= __DBL_MAX__) && has_not_finite(x, n);
}

/// grad = grad·inv over n elements; says whether one was not finite.
template <class S>
bool unscale_row(S* grad, int64_t stride, int64_t n, Accumulate<S> inv) {
  using V = Native<Accumulate<S>>;
  constexpr int W = kWidth<V>;
  IntOf<V> mask{};
  const auto scale = [&](V x) {
    mask |= not_finite(x);
    return x * inv;
  };
  int64_t i = 0;
  if (stride == 1)
    for (; i + W <= n; i += W) store_as(grad + i, scale(load_as<V>(grad + i)));
  for (; i < n; i += W) {
    S lanes[W] = {};
    for (int64_t k = 0; k < W && i + k < n; ++k) lanes[k] = grad[(i + k) * stride];
    store_as(lanes, scale(load_as<V>(lanes)));
    for (int64_t k = 0; k < W && i + k < n; ++k) grad[(i + k) * stride] = lanes[k];
  }
  return any(mask);
}

}  // namespace

void amp_grad_stats(const GradStatsParams& p, int64_t tensor, int64_t block, int64_t slot) {
  const Walk& walk = p.walks[tensor];
  const int64_t begin = block * kStatsBlock,
                end = begin + kStatsBlock < walk.numel ? begin + kStatsBlock : walk.numel;
  with_storage(p.grads[tensor].dtype, [&](auto s) {
    using S = decltype(s);
    const S* const data = static_cast<const S*>(p.grads[tensor].data);
    if (walk.dims == 0)
      return block_stats(data + begin, end - begin, p.inv_scale, p.sums[slot], p.bad[slot]);
    S dense[kStatsBlock];
    S* to = dense;
    walk_rows<1>(walk, p.layouts, begin, end,
                 [&](const int64_t* offset, const int64_t* stride, int64_t n) {
                   for (int64_t i = 0; i < n; ++i) *to++ = data[*offset + i * *stride];
                 });
    block_stats(dense, end - begin, p.inv_scale, p.sums[slot], p.bad[slot]);
  });
}

bool amp_unscale(const GradientsProblem& p, int64_t first, int64_t last) {
  bool bad = false;
  walk_tensors(p.walks, p.count, first, last, [&](int64_t t, int64_t begin, int64_t end) {
    walk_rows<1>(p.walks[t], p.layouts, begin, end,
                 [&](const int64_t* offset, const int64_t* stride, int64_t n) {
                   with_storage(p.grads[t].dtype, [&](auto s) {
                     using S = decltype(s);
                     bad |= unscale_row(static_cast<S*>(p.grads[t].data) + *offset, *stride, n,
                                        static_cast<Accumulate<S>>(p.inv_scale));
                   });
                 });
  });
  return bad;
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
