// What the kernels are told: plain pointers, sizes and strides.
//
// Legend: T tokens, E experts, K experts per token, H width of a token, I hidden width of an
// expert.
#pragma once

#include <cstdint>

#include "simd/types.h"

namespace fulgurite {

/// A matrix of any strides, in elements.
struct Matrix {
  const void* data;
  int64_t row_stride, column_stride;
};

/// softmax: over all experts; softmax_topk: over the chosen ones.
enum class Score : int { kSoftmax, kSoftmaxTopk, kSigmoid, kSqrtSoftplus };

struct RouteParams {
  Dtype dtype;  // of logits; everything else is in the accumulation type unless said otherwise
  int64_t T, E, K;
  Score score;
  int64_t n_group, topk_group;
  bool group_sum;  // a group's score is the sum of its best two, else its best
  bool renormalize;
  double eps, scale;
  Matrix logits;           // (T,E)
  const void* bias;        // (E) or null
  const bool* token_mask;  // (T) or null
  int64_t token_mask_stride;
  const int32_t* forced;  // (T,K) or null, contiguous
  void* weights;          // (T,K)
  int32_t* ids;           // (T,K)
  // backward
  Matrix grad_weights, chosen;  // (T,K); chosen is int32
  void* grad_logits;            // (T,E) of dtype
};

struct LossParams {
  Dtype dtype;  // of logits
  int64_t T, E;
  Score score;
  double eps;
  Matrix logits;           // (T,E)
  const bool* token_mask;  // (T) or null
  int64_t token_mask_stride;
  const void* coefficients;  // rows of E; balance losses: Σ_t Σ_e coefficient_e·P_te
  const int32_t* sequence;   // (T): the row of coefficients of each token; null: the first
  double* partial;           // forward: per task, one number, or E of them (score sums)
  double grad;               // backward: the incoming gradient, with every constant factor
  void* grad_logits;         // (T,E) of dtype
};

/// Rows [first, last) of a call; `part` numbers the task.
using RouteTaskFn = void(const RouteParams&, int64_t first, int64_t last, void* scratch);
using RouteLayoutFn = void(const RouteParams&, int64_t* scratch_bytes);
using LossTaskFn = void(const LossParams&, int64_t part, int64_t first, int64_t last,
                        void* scratch);

struct UpdateBiasParams {
  Dtype dtype;  // of bias
  int64_t E;
  void* bias;
  int64_t bias_stride;
  const int64_t* counts;  // contiguous
  double rate;
  bool proportional, center;
};
using UpdateBiasFn = void(const UpdateBiasParams&);

/// Rows of E elements that one loss task has as scratch.
inline constexpr int64_t kRowBuffers = 6;
inline constexpr int64_t kRowPadding = 16;  // elements: 64 bytes of float32
inline constexpr int64_t padded_row(int64_t n) {
  return (n + kRowPadding - 1) / kRowPadding * kRowPadding;
}

// ---- permute, combine

struct CombineParams {
  Dtype dtype;  // of x, y, out and their gradients
  int64_t T, K, H;
  const int32_t* permutation;  // (T·K) contiguous
  const int32_t* inverse;      // (T,K) contiguous
  Matrix x;                    // permute: (T,H)
  Matrix y;                    // combine: (T·K,H)
  const void* weights;         // (T,K) of the accumulation type, contiguous, or null
  Matrix grad;                 // backward: (T,H)
  const int32_t* owner;  // backward: (T·K), the assignment that each row of y belongs to, or −1
  void* out;             // permute (T·K,H), combine (T,H), or the gradient of y (T·K,H)
  void* grad_weights;    // (T,K) of the accumulation type
};
using CombineTaskFn = void(const CombineParams&, int64_t first_row, int64_t last_row,
                           void* scratch);

// ---- experts

/// One matrix for each expert, of any strides.
struct ExpertMatrices {
  const void* data;
  int64_t expert_stride, row_stride, column_stride;
};

/// Sorted positions [first, first + rows) of one expert.
struct Segment {
  int64_t expert, first, rows;
};

inline constexpr int64_t kSegmentRows =
    512;  // packing a weight is then below 3 % of multiplying with it
inline constexpr int64_t kTokenBlock = 96;  // rows of a tile: whole groups of 6
inline constexpr int64_t kDepthBlock =
    256;  // length of one chain of additions: short enough to be accurate
inline constexpr int64_t kHiddenBlock =
    64;  // columns of I, and of H, in a tile: whole panels on every instruction set
inline constexpr int64_t kGradRows = 96;  // tile of a weight's gradient
inline constexpr int64_t kGradColumns = 256;

/// Both passes over the hidden layer; positions are sorted by expert.
struct HiddenParams {
  Dtype dtype;
  int64_t K, H, I;
  const Segment* segments;
  const int32_t* permutation;  // (T·K)
  Matrix x;                    // (T,H)
  ExpertMatrices w_in, w_out;  // (E,2I,H), (E,H,I)
  void* hidden;  // (T·K,2I) of the accumulation type, gate then up; written by the forward, or null
  void*
      activated;  // (T·K,row_width) operands (simd/microkernel.h): forward h, backward w·h; or null
  int64_t row_width;  // I, or what operands pad it to: the rest is zero
  // backward
  Matrix grad;          // (T,H)
  const void* weights;  // (T,K) of the accumulation type
  bool need_grad;       // the gradients of hidden and weights, not only w·h
  void* grad_hidden;    // (T·K,2I) operands
  void* dots;           // (T·K, column blocks) of the accumulation type: parts of h·dh
};
using HiddenTaskFn = void(const HiddenParams&, int64_t task, void* scratch);

/// What depends on the instruction set: bytes of scratch of one task, bytes of an operand, and what its rows are a multiple of.
struct HiddenLayout {
  int64_t hidden, grad_hidden;
  int64_t operand_bytes, row_multiple;
};
using HiddenLayoutFn = void(const HiddenParams&, HiddenLayout*);

/// out_t = Σ over the experts of t, in order: w · row · B_e, rows sorted by expert.
struct ReduceParams {
  Dtype dtype;
  int64_t T, K, E, H;
  int64_t depth, row_width;  // of a row: what counts, and from one to the next
  int64_t token_range;       // tokens of one task
  const int32_t* permutation;
  const int64_t* offsets;
  const void* rows;     // (T·K,row_width) operands; what is past depth is zero
  ExpertMatrices b;     // (depth,H) for each expert
  const void* weights;  // (T,K) of the accumulation type; null: all 1
  void* out;            // (T,H)
};
using ReduceTaskFn = void(const ReduceParams&, int64_t task, void* scratch);
using ReduceLayoutFn = void(const ReduceParams&, int64_t* scratch_bytes);

/// A row for each sorted position: stored at it as operands, or gathered from its token in the storage
/// type.
struct SortedRows {
  Matrix matrix;
  bool gathered;
};

/// grad_e = Σ over the rows of e, in order: a_rᵀ b_r.
struct GradWeightParams {
  Dtype dtype;
  int64_t K, M, N;  // grad (E,M,N), contiguous
  const int32_t* permutation;
  const int64_t* offsets;
  SortedRows a, b;  // M and N wide
  void* grad;
};
using GradWeightTaskFn = void(const GradWeightParams&, int64_t task, void* scratch);
using GradWeightLayoutFn = void(const GradWeightParams&, int64_t* scratch_bytes);

}  // namespace fulgurite
