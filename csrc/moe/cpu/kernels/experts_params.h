// What the kernels of the experts are told: the problem (rules/problem.h), and what each pass has besides it.
#pragma once

#include "moe/rules/problem.h"

namespace fulgurite {

inline constexpr int64_t kSegmentRows =
    512;  // packing a weight is then below 3 % of multiplying with it
inline constexpr int64_t kTokenBlock = 96;  // rows multiplied at a time: whole strips of 6
inline constexpr int64_t kDepthBlock =
    256;  // length of one chain of additions: short enough to be accurate
inline constexpr int64_t kHiddenBlock =
    64;  // columns of I, and of H, in a task: whole panels on every instruction set
inline constexpr int64_t kGroupedColumns = 128;  // columns of a grouped product in a task
inline constexpr int64_t kGradRows = 192;        // a task's part of a weight's gradient
inline constexpr int64_t kGradColumns = 256;
inline constexpr int64_t kBiasColumns = 256;  // columns of a bias's gradient in a task

/// Rows as operands (simd/microkernel.h): what is past their width, up to a whole step, is zero.
struct HiddenPacking {
  SortedRows x, grad;  // (T·K,H)
  void* activated;     // (T·K,row_width): forward h, backward w·h; or null
  int64_t row_width;   // I, or what operands pad it to
  void* grad_hidden;   // (T·K,grad_width)
  int64_t grad_width;  // width, or what operands pad it to
};

struct HiddenForward {
  void* hidden;  // (T·K,width) of the accumulation type, or null; the backward reads it
};

struct HiddenBackward {
  const void* weights;  // (T,K) of the accumulation type
  bool need_grad;       // the gradients of hidden and weights, not only w·h
  void*
      dots;  // (T·K,dot_parts) of the accumulation type: parts of h·dh by block of columns, then b_out·dout
  int64_t dot_parts;
};

struct HiddenParams : ExpertsProblem, HiddenPacking, HiddenForward, HiddenBackward {};
using HiddenTaskFn = void(const HiddenParams&, int64_t task, void* scratch);

/// Sorted rows as operands.
struct GatherParams {
  Dtype dtype;
  int64_t N;
  SortedRows rows;
  void* to;       // (T·K,width) operands
  int64_t width;  // N rounded up to whole vectors at least
};
using GatherTaskFn = void(const GatherParams&, int64_t first, int64_t last);

/// What depends on the instruction set: bytes of scratch of one task, bytes of an operand, and what its rows are a multiple of.
struct HiddenLayout {
  int64_t hidden, grad_hidden;
  int64_t operand_bytes, row_multiple;
};
using HiddenLayoutFn = void(const HiddenParams&, HiddenLayout*);

/// out_t = Σ over the experts of t, in order: w · (row · B_e + bias_e), rows sorted by expert.
struct ReduceParams {
  Dtype dtype;
  int64_t T, K, E, H;
  int64_t depth, row_width;  // of a row: what counts, and from one to the next
  int64_t token_range;       // tokens of one task
  const int32_t* permutation;
  const int64_t* offsets;
  const void* rows;     // (T·K,row_width) operands; what is past depth is zero
  ExpertMatrices b;     // (depth,H) for each expert
  ExpertRows bias;      // (E,H), or none
  const void* weights;  // (T,K) of the accumulation type; null: all 1
  // (T,H) of the accumulation type, where the experts come in parts; null before the first one and after the last
  const void* before;  // the sums begin with these
  void* after;         // and go here, not to out
  void* out;           // (T,H)
};
using ReduceTaskFn = void(const ReduceParams&, int64_t task, void* scratch);
using ReduceLayoutFn = void(const ReduceParams&, int64_t* scratch_bytes);

/// grad_e = Σ over the rows of e, in order: a_rᵀ b_r.
struct GradWeightParams {
  Dtype dtype;
  int64_t M, N;  // grad (E,M,N), contiguous
  const int64_t* offsets;
  SortedRows a, b;  // M and N wide
  void* grad;
};
using GradWeightTaskFn = void(const GradWeightParams&, int64_t task, void* scratch);
using GradWeightLayoutFn = void(const GradWeightParams&, int64_t* scratch_bytes);

/// grad_e = Σ over the rows of e, in order: w_r · row_r.
struct GradBiasParams {
  Dtype dtype;
  int64_t N;  // grad (E,N), contiguous
  const int64_t* offsets;
  SortedRows rows;
  const void*
      weights;  // (T,K) of the accumulation type, for rows that have a permutation; null: all 1
  void* grad;
};
using GradBiasTaskFn = void(const GradBiasParams&, int64_t task, void* scratch);

/// out_r = x_r · B_e + bias_e for the rows r of expert e.
struct GroupedParams {
  Dtype dtype;
  int64_t depth, N;
  const Segment* segments;
  SortedRows x;      // (rows,depth)
  ExpertMatrices b;  // (depth,N) for each expert
  ExpertRows bias;   // (E,N), or none
  void* out;         // (rows,N), contiguous
};
using GroupedTaskFn = void(const GroupedParams&, int64_t task, void* scratch);
using GroupedLayoutFn = void(const GroupedParams&, int64_t* scratch_bytes);

}  // namespace fulgurite
