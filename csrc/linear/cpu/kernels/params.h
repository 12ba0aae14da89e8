// What the kernels of the family are told besides the problem.
#pragma once

#include "linear/rules/problem.h"

namespace fulgurite {

/// Channels of a task: what a cache line holds of 16-bit numbers.
inline constexpr int64_t kConvChannels = 32;

/// Tasks of forward and backward: groups of pieces, the blocks of channels of each next to each other.
inline int64_t conv_channel_blocks(const CausalConv1dProblem& p) {
  return (p.C + kConvChannels - 1) / kConvChannels;
}
inline int64_t conv_tasks(const CausalConv1dProblem& p) {
  return p.parts.group_count * conv_channel_blocks(p);
}

struct CausalConv1dParams : CausalConv1dProblem {
  void* out;    // (B,C,L)
  void* state;  // (sequences,C,W-1)
};

/// What is null is not wanted.
struct CausalConv1dBackwardParams : CausalConv1dProblem {
  Signal grad_out;           // (B,C,L); null: zeros
  Signal grad_state;         // (sequences,C,W-1); null: zeros
  void* grad_x;              // (B,C,L)
  void* grad_initial_state;  // (sequences,C,W-1)
  void* sums;                // (groups,C,W+1), accumulation type: of each weight, then of the bias
  void* grad_weight;         // (C,W)
  void* grad_bias;           // (C)
};

using CausalConv1dTaskFn = void(const CausalConv1dParams&, int64_t task, void* scratch);
using CausalConv1dLayoutFn = void(const CausalConv1dParams&, int64_t* bytes);
using CausalConv1dBackwardTaskFn = void(const CausalConv1dBackwardParams&, int64_t task,
                                        void* scratch);
using CausalConv1dBackwardLayoutFn = void(const CausalConv1dBackwardParams&, int64_t* bytes);
using CausalConv1dSumsFn = void(const CausalConv1dBackwardParams&, int64_t first, int64_t last);

}  // namespace fulgurite
