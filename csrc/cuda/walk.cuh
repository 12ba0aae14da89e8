// Walks over lists of tensors (common/walk_table.h) on a card; simd/walk.h goes through the same tables on the CPU.
#pragma once

#include <cstdint>

#include "common/walk_table.h"
#include "cuda/cux.h"

namespace fulgurite::cuda {

/// Index of the last entry that is at most `value`, of at(0) ≤ value, at(1), …, at(count − 1), which never fall.
template <class At>
__device__ int64_t last_at_most(int64_t count, int64_t value, const At& at) {
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (at(middle) <= value ? low : high) = middle;
  }
  return low;
}

/// The walk that a position lies in.
__device__ inline int64_t find_walk(const Walk* walks, int64_t count, int64_t position) {
  return last_at_most(count, position, [walks](int64_t t) { return walks[t].position; });
}

/// Where element `index` of each operand lies.
template <int kOperands>
__device__ void offsets_of(const Walk& walk, const int64_t* layouts, int64_t index,
                           int64_t (&offsets)[kOperands]) {
  for (int k = 0; k < kOperands; ++k) offsets[k] = walk.dims == 0 ? index : 0;
  const int64_t* const sizes = layouts + walk.layout;
  const int64_t* const strides = sizes + walk.dims;
  for (int d = walk.dims - 1; d >= 0; --d) {
    const int64_t at = index % sizes[d];
    index /= sizes[d];
    for (int k = 0; k < kOperands; ++k) offsets[k] += at * strides[d * kOperands + k];
  }
}

}  // namespace fulgurite::cuda
