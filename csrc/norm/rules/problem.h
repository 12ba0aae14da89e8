// The call as every device sees it: plain pointers, sizes and strides.
//
// Legend: H width of a row.
#pragma once

#include <cstdint>

#include "common/walk_table.h"
#include "simd/types.h"

namespace fulgurite {

struct RmsNormProblem {
  Dtype dtype, weight_dtype;  // of x, out and their gradients; of weight and its gradient
  int64_t H, rows;
  double eps, weight_shift;
  // Where rows begin: those of x, and of grad_out in a backward.
  Walk walk;
  const int64_t* layouts;
  const void* x;  // (rows,H)
  int64_t x_stride;
  const void* weight;  // (H); null: none
  int64_t weight_stride;
};

}  // namespace fulgurite
