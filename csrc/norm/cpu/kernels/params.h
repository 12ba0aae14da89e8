// What the kernels of the family are told besides the problem, and how rows become tasks.
#pragma once

#include "common/ceil_div.h"
#include "norm/rules/problem.h"

namespace fulgurite {

/// Rows of a task: some 16 thousand elements.
inline int64_t rms_norm_rows_per_task(int64_t H) { return H < 16384 ? 16384 / H : 1; }

/// Rows of a backward's task. A sum over each is kept: of many rows there are at most this many.
inline constexpr int64_t kNormBlocks = 64;
inline int64_t rms_norm_rows_per_block(int64_t H, int64_t rows) {
  const int64_t least = rms_norm_rows_per_task(H), most = ceil_div(rows, kNormBlocks);
  return least > most ? least : most;
}

/// Elements of such a sum, to the end of a vector of any set.
inline int64_t rms_norm_padded(int64_t H) { return ceil_div(H, 16) * 16; }

struct RmsNormParams : RmsNormProblem {
  int64_t rows_per_task;
  void* out;   // (rows,H)
  void* rstd;  // (rows), accumulation type; null: not wanted
};

/// What is null is not wanted.
struct RmsNormBackwardParams : RmsNormProblem {
  int64_t rows_per_block;
  const void* grad_out;  // (rows,H)
  int64_t grad_out_stride;
  const void* rstd;   // (rows), accumulation type
  void* grad_x;       // (rows,H)
  void* sums;         // (blocks,padded H), accumulation type
  void* grad_weight;  // (H)
};

using RmsNormTaskFn = void(const RmsNormParams&, int64_t task, void* scratch);
using RmsNormLayoutFn = void(const RmsNormParams&, int64_t* bytes);
using RmsNormBackwardTaskFn = void(const RmsNormBackwardParams&, int64_t block, void* scratch);
using RmsNormBackwardLayoutFn = void(const RmsNormBackwardParams&, int64_t* bytes);
using RmsNormSumsFn = void(const RmsNormBackwardParams&, int64_t first, int64_t last);

}  // namespace fulgurite
