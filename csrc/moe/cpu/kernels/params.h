// What the kernels are told: plain pointers, sizes and strides.
//
// Legend: T tokens, E experts, K experts per token, H width of a token, I hidden width of an
// expert.
#pragma once

#include <cstdint>

#include "moe/rules/choices.h"
#include "simd/types.h"

namespace fulgurite {

/// A matrix of any strides, in elements.
struct Matrix {
  const void* data;
  int64_t row_stride, column_stride;
};

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
  int64_t* counts;        // (E), added to by every task
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

}  // namespace fulgurite
