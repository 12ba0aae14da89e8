// Passes over lists of gradients: statistics (read only) and unscaling, with the bits of the CPU's.
//   grad_stats  Σ (grad·inv_scale)² in float64
//   unscale     grad = grad·inv_scale, rounded once
//
// Reads: gradients of any strides, each once.
// Writes: grad_stats a sum for each slot and whether it has a NaN or Inf, then for each gradient, then for the list; unscale the
//   gradients, and found_inf where one was not finite.
// Task: grad_stats 16 lanes for a slot, and for a gradient; unscale a block for a range of positions.
// Order of sums: the tree of rules/stats_tree.h.

#pragma once

#include <cstdint>

#include "amp/cuda/problem.h"
#include "amp/rules/stats_tree.h"
#include "common/value.h"
#include "cuda/cux.h"
#include "cuda/walk.cuh"

namespace fulgurite::cuda {

constexpr int kThreads = 128, kTreesPerBlock = kThreads / kTreeLanes;
/// Loads that a thread has under way.
constexpr int kAhead = 16;

/// Runs visitor(S{}) for the storage type S of dtype.
template <class Visitor>
__device__ void with_storage(Dtype dtype, const Visitor& visitor) {
  switch (dtype) {
    case Dtype::kFloat32: return visitor(float{});
    case Dtype::kBFloat16: return visitor(BFloat16{});
    case Dtype::kFloat16: return visitor(Half{});
    case Dtype::kFloat64: break;  // runs on the CPU only
  }
}

__device__ inline float number(float x) { return x; }
template <class S>
__device__ float number(S x) {
  float number, nothing;
  cux::unpack2<S>(x.bits, number, nothing);
  return number;
}

__device__ inline bool is_finite(float x) { return x - x == 0; }

__device__ inline float inv_scale_of(const Gradients& p) {
  return p.inv_scale ? *p.inv_scale : 1.0f;
}

// ---- statistics ----

/// The 16 lanes that a thread adds with, and its place among them.
struct TreeThread {
  int64_t tree;
  int lane;
  unsigned shift;  // of the tree's lanes in a ballot
};
__device__ inline TreeThread tree_thread() {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  return {thread / kTreeLanes, static_cast<int>(threadIdx.x % kTreeLanes),
          threadIdx.x % 32 / kTreeLanes * kTreeLanes};
}

/// sum_of_lanes of stats_tree.h, in lane 0; all lanes of the warp take part.
__device__ inline double sum_of_warp_lanes(double sum) {
  for (int half = kTreeLanes / 2; half > 0; half /= 2)
    sum += __shfl_down_sync(~0u, sum, static_cast<unsigned>(half), kTreeLanes);
  return sum;
}
__device__ inline bool any_of_tree(const TreeThread& at, bool mine) {
  return (__ballot_sync(~0u, mine) >> at.shift & ((1u << kTreeLanes) - 1)) != 0;
}
/// tree_sum of stats_tree.h, the same way.
template <class At>
__device__ double tree_sum_of_lanes(int64_t n, int lane, const At& at) {
  double sum = 0;
  for (int64_t i = lane; i < n; i += kTreeLanes) sum += at(i);
  return sum_of_warp_lanes(sum);
}

struct LaneStats {
  double sum = 0;
  bool bad = false;
};

/// A lane's part of n elements, of which element i is at x[offset(i)]. As on the CPU the last 16 are filled up with zeros.
template <int kAhead, class S, class Offset>
__device__ void add_lane(LaneStats& stats, const S* x, int n, int lane, double inv_scale,
                         const Offset& offset) {
  for (int begin = 0; begin < n; begin += kAhead * kTreeLanes) {
    float ahead[kAhead];
    CUX_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      const int i = begin + k * kTreeLanes + lane;
      ahead[k] = i < n ? number(x[offset(i)]) : 0.0f;
    }
    CUX_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      if (begin + k * kTreeLanes >= n) continue;
      stats.sum += scaled_square(static_cast<double>(ahead[k]), inv_scale);
      stats.bad |= !is_finite(ahead[k]);
    }
  }
}

static __global__ void __launch_bounds__(kThreads) slot_stats(GradStatsProblem p) {
  const TreeThread at = tree_thread();
  LaneStats stats;
  if (at.tree < p.slots) {
    const int64_t t =
        last_at_most(p.count, at.tree, [&p](int64_t gradient) { return p.first[gradient]; });
    const Walk walk = p.walks[t];
    const int64_t begin = (at.tree - p.first[t]) * kStatsBlock, left = walk.numel - begin;
    const int n = static_cast<int>(left < kStatsBlock ? left : kStatsBlock);
    const double inv_scale = inv_scale_of(p);
    with_storage(p.grads[t].dtype, [&](auto s) {
      const auto* const x = static_cast<const decltype(s)*>(p.grads[t].data);
      if (walk.dims == 0)
        return add_lane<kAhead>(stats, x + begin, n, at.lane, inv_scale, [](int i) { return i; });
      add_lane<1>(stats, x, n, at.lane, inv_scale, [&](int i) {
        int64_t offset[1];
        offsets_of(walk, p.layouts, begin + i, offset);
        return offset[0];
      });
    });
  }
  const double sum = sum_of_warp_lanes(stats.sum);
  const bool bad = any_of_tree(at, stats.bad);
  if (at.lane == 0 && at.tree < p.slots) {
    p.slot_sums[at.tree] = sum;
    p.slot_bad[at.tree] = bad;
  }
}

static __global__ void __launch_bounds__(kThreads) gradient_stats(GradStatsProblem p) {
  const TreeThread at = tree_thread();
  const bool mine = at.tree < p.count;
  const int64_t first = mine ? p.first[at.tree] : 0, n = mine ? p.first[at.tree + 1] - first : 0;
  LaneStats stats;
  stats.sum = tree_sum_of_lanes(n, at.lane, [&](int64_t i) {
    stats.bad |= p.slot_bad[first + i];
    return p.slot_sums[first + i];
  });
  const bool bad = any_of_tree(at, stats.bad);
  if (at.lane == 0 && mine) {
    p.grad_sums[at.tree] = stats.sum;
    p.grad_bad[at.tree] = bad;
  }
}

/// One warp; both its trees do the same.
static __global__ void __launch_bounds__(32) list_stats(GradStatsProblem p) {
  const int lane = tree_thread().lane;
  int64_t first_bad = p.count;
  const double sum = tree_sum_of_lanes(p.count, lane, [&](int64_t i) {
    if (p.grad_bad[i] && i < first_bad) first_bad = i;
    return p.grad_sums[i];
  });
  for (int half = kTreeLanes / 2; half > 0; half /= 2) {
    const int64_t other = __shfl_xor_sync(~0u, first_bad, half);
    first_bad = other < first_bad ? other : first_bad;
  }
  if (threadIdx.x != 0) return;
  *p.norm_sq = sum;
  *p.found_inf = first_bad < p.count ? 1.0f : 0.0f;
  *p.first_bad = first_bad < p.count ? first_bad : -1;
}

// ---- unscaling ----

constexpr int kUnscaleThreads = 256;

/// x·inv; notes whether x was not finite.
__device__ inline float scaled(float x, float inv, bool& bad) {
  bad |= !is_finite(x);
  return x * inv;
}
/// An element, rounded once.
__device__ inline float scaled_element(float x, float inv, bool& bad) {
  return scaled(x, inv, bad);
}
template <class S>
__device__ S scaled_element(S x, float inv, bool& bad) {
  return {static_cast<uint16_t>(cux::pack2<S>(scaled(number(x), inv, bad), 0.0f))};
}
/// The elements of a word.
template <class S>
__device__ uint32_t scaled_word(uint32_t word, float inv, bool& bad) {
  if constexpr (sizeof(S) == 4) {
    return same_bits<uint32_t>(scaled(same_bits<float>(word), inv, bad));
  } else {
    float low, high;
    cux::unpack2<S>(word, low, high);
    return cux::pack2<S>(scaled(low, inv, bad), scaled(high, inv, bad));
  }
}

/// n dense elements, by the threads of a block.
template <class S>
__device__ void unscale_dense(S* x, int n, float inv, bool& bad) {
  constexpr int kWidth = 16 / sizeof(S), kLoads = 4;
  const int thread = static_cast<int>(threadIdx.x);
  const int vectors = reinterpret_cast<uintptr_t>(x) % 16 == 0 ? n / kWidth : 0;
  for (int begin = thread; begin < vectors; begin += kLoads * kUnscaleThreads) {
    cux::Words<4> words[kLoads];
    CUX_UNROLL
    for (int k = 0; k < kLoads; ++k) {
      const int v = begin + k * kUnscaleThreads;
      if (v < vectors) words[k] = cux::load_global16(x + v * kWidth);
    }
    CUX_UNROLL
    for (int k = 0; k < kLoads; ++k) {
      const int v = begin + k * kUnscaleThreads;
      if (v >= vectors) continue;
      CUX_UNROLL
      for (uint32_t& word : words[k].word) word = scaled_word<S>(word, inv, bad);
      cux::store_global(x + v * kWidth, words[k]);
    }
  }
  for (int i = vectors * kWidth + thread; i < n; i += kUnscaleThreads)
    x[i] = scaled_element(x[i], inv, bad);
}

/// Elements [begin, end) of one gradient, by the threads of a block.
template <class S>
__device__ void unscale_range(S* x, const Walk& walk, const int64_t* layouts, int64_t begin,
                              int64_t end, float inv, bool& bad) {
  if (walk.dims == 0) return unscale_dense(x + begin, static_cast<int>(end - begin), inv, bad);
  for (int64_t i = begin + threadIdx.x; i < end; i += kUnscaleThreads) {
    int64_t offset[1];
    offsets_of(walk, layouts, i, offset);
    x[offset[0]] = scaled_element(x[offset[0]], inv, bad);
  }
}

static __global__ void __launch_bounds__(kUnscaleThreads) unscale(UnscaleProblem p) {
  const int64_t first = blockIdx.x * kPositionsPerBlock, last = first + kPositionsPerBlock;
  const float inv = inv_scale_of(p);
  bool bad = false;
  for (int64_t t = find_walk(p.walks, p.count, first); t < p.count && p.walks[t].position < last;
       ++t) {
    const Walk walk = p.walks[t];
    const int64_t start = first - walk.position, stop = last - walk.position;
    const int64_t begin = start > 0 ? start : 0, end = stop < walk.numel ? stop : walk.numel;
    with_storage(p.grads[t].dtype, [&](auto s) {
      unscale_range(static_cast<decltype(s)*>(p.grads[t].data), walk, p.layouts, begin, end, inv,
                    bad);
    });
  }
  if (__any_sync(~0u, bad) && threadIdx.x % 32 == 0) atomicExch(p.found_inf, 1.0f);
}

}  // namespace fulgurite::cuda
