// What the kernels of routers, losses and sorted rows are told: the problem (rules/problem.h), and what each pass has besides it.
#pragma once

#include "moe/rules/problem.h"

namespace fulgurite {

/// Rows in scratch are padded to whole groups of as many elements.
inline constexpr int64_t kRowPadding = 16;  // 64 bytes of float32
inline constexpr int64_t padded_row(int64_t n) {
  return (n + kRowPadding - 1) / kRowPadding * kRowPadding;
}

struct RouteForward {
  int64_t n_group, topk_group;
  GroupScore group_score;
  const void* bias;  // (E), padded with zeros, or null
  TokenMask token_mask;
  const int32_t* forced;  // (T,K) or null, contiguous
  void* weights;          // (T,K)
  int32_t* ids;           // (T,K)
  int64_t* counts;        // (E), added to by every task
};

struct RouteBackward {
  Matrix grad_weights, chosen;  // (T,K); chosen is int32
  void* grad_logits;            // (T,E) of dtype
};

struct RouteParams : RouteProblem, RouteForward, RouteBackward {};
/// Rows [first, last) of a call.
using RouteTaskFn = void(const RouteParams&, int64_t first, int64_t last, void* scratch);
using RouteLayoutFn = void(const RouteParams&, int64_t* scratch_bytes);

struct LossForward {
  double* partial;  // per task, one number, or E of them (score sums)
};

struct LossBackward {
  double grad;        // the incoming gradient, with every constant factor
  void* grad_logits;  // (T,E) of dtype
};

struct LossParams : LossProblem, LossForward, LossBackward {};
/// Rows [first, last) of a call; `part` numbers the task.
using LossTaskFn = void(const LossParams&, int64_t part, int64_t first, int64_t last,
                        void* scratch);
using UpdateBiasFn = void(const UpdateBiasProblem&);

/// Rows of E elements that one loss task has as scratch.
inline constexpr int64_t kRowBuffers = 6;

struct CombineForward {
  const int32_t* permutation;  // permute: (T·K) contiguous
  Matrix x;                    // permute: (T,H)
  void* out;                   // permute (T·K,H), combine (T,H)
};

struct CombineBackward {
  Matrix grad;           // (T,H)
  const int32_t* owner;  // (T·K), the assignment that each row of y belongs to, or −1
  void* grad_y;          // (T·K,H)
  void* grad_weights;    // (T,K) of the accumulation type
};

struct CombineParams : CombineProblem, CombineForward, CombineBackward {};
using CombineTaskFn = void(const CombineParams&, int64_t first_row, int64_t last_row,
                           void* scratch);

}  // namespace fulgurite
