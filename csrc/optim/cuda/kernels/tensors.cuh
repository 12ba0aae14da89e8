// How a warp finds its elements: blocks of kBlock over all tensors are numbered, and a warp takes some that follow each other.
#pragma once

#include "cuda/launch.h"
#include "cuda/search.h"
#include "optim/cuda/problem.h"

namespace fulgurite::cuda {

constexpr int kThreads = 256, kWarps = kThreads / 32;

__device__ inline int lane_of_thread() { return static_cast<int>(threadIdx.x) % 32; }

/// Whether found_inf says that nothing may change.
__device__ inline bool is_skipped(const float* found_inf) { return found_inf && *found_inf > 0; }

/// Calls visit(tensor, block of it) for the kUnits units of the warp.
template <int kUnits, class Visit>
__device__ void for_units(const AdamwTable& table, const Visit& visit) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int64_t first = warp * kUnits;
  const int64_t last = first + kUnits < table.units ? first + kUnits : table.units;
  if (first >= last) return;
  int64_t t = cux::last_that_begins(table.count, lane_of_thread(), [&](int64_t i) {
    return table.entries[i].walk.position <= first * kBlock;
  });
  for (int64_t unit = first; unit < last; ++unit) {
    while (t + 1 < table.count && table.entries[t + 1].walk.position <= unit * kBlock) ++t;
    visit(t, unit - table.entries[t].walk.position / kBlock);
  }
}

template <int kUnits>
dim3 grid_of(const AdamwTable& table) {
  constexpr int64_t kUnitsPerBlock = int64_t{kWarps} * kUnits;
  return dim3(static_cast<unsigned>((table.units + kUnitsPerBlock - 1) / kUnitsPerBlock));
}

}  // namespace fulgurite::cuda
