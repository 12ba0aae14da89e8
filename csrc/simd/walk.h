// Element-wise walks over lists of tensors of any strides. Every tensor of the list, with its
// operands (parameter, gradient, …), occupies an interval in one space of positions, which is cut
// into tasks of equal size: many small tensors share a task, a large one is spread over several.
#pragma once

#include <cstdint>

#include "common/walk_table.h"
#include "simd/vec.h"

namespace fulgurite {

namespace FULGURITE_VARIANT {

/// Index of the last walk that begins at or before the position.
inline int64_t find_walk(const Walk* walks, int64_t count, int64_t position) {
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (walks[middle].position <= position ? low : high) = middle;
  }
  return low;
}

/// Calls visit(tensor, begin, end) for the elements of every tensor that lie in positions [first,
/// last).
template <class Visit>
FULGURITE_INLINE void walk_tensors(const Walk* walks, int64_t count, int64_t first, int64_t last,
                                   const Visit& visit) {
  for (int64_t t = find_walk(walks, count, first); t < count && walks[t].position < last; ++t) {
    const int64_t start = first - walks[t].position, stop = last - walks[t].position;
    const int64_t begin = start > 0 ? start : 0,
                  end = stop < walks[t].numel ? stop : walks[t].numel;
    if (begin < end) visit(t, begin, end);
  }
}

/// Calls row(offsets, strides, n) for the rows that make up elements [begin, end): n elements,
/// operand k's at offsets[k] + i·strides[k].
template <int kOperands, class Row>
FULGURITE_INLINE void walk_rows(const Walk& walk, const int64_t* layouts, int64_t begin,
                                int64_t end, const Row& row) {
  int64_t offsets[kOperands], strides[kOperands];
  if (walk.dims == 0) {
    for (int k = 0; k < kOperands; ++k) offsets[k] = begin, strides[k] = 1;
    return row(offsets, strides, end - begin);
  }
  const int64_t* const sizes = layouts + walk.layout;
  const int64_t* const table = sizes + walk.dims;
  const int64_t* const inner = table + (walk.dims - 1) * kOperands;
  const int64_t width = sizes[walk.dims - 1];
  for (int k = 0; k < kOperands; ++k) strides[k] = inner[k];
  while (begin < end) {
    for (int k = 0; k < kOperands; ++k) offsets[k] = 0;
    int64_t rest = begin;
    for (int d = walk.dims - 1; d >= 0; --d) {
      const int64_t index = rest % sizes[d];
      rest /= sizes[d];
      for (int k = 0; k < kOperands; ++k) offsets[k] += index * table[d * kOperands + k];
    }
    const int64_t left = width - begin % width;
    const int64_t n = left < end - begin ? left : end - begin;
    row(offsets, strides, n);
    begin += n;
  }
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
