// What the merge kernels are told: R partial results of the same rows, contiguous.
#pragma once

#include <cstdint>

#include "simd/types.h"

namespace fulgurite {

struct MergeParams {
  Dtype dtype;  // of outs; lses are of the accumulation type
  int64_t R, rows, D;
  const void* const* outs;  // R of (rows, D)
  const void* const* lses;  // R of (rows)
  void *out, *lse;          // forward

  const void *grad_out, *grad_lse;  // backward; an incoming gradient that is not there is null
  void* const* grad_outs;           // a null entry is not wanted
  void* const* grad_lses;
};

/// Rows [first, last).
using MergeFn = void(const MergeParams&, int64_t first, int64_t last);

}  // namespace fulgurite
