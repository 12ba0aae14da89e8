// What the kernels of the family are told besides the problem.
#pragma once

#include "common/ceil_div.h"
#include "linear/rules/problem.h"

namespace fulgurite {

/// Channels of a task: what a cache line holds of 16-bit numbers.
inline constexpr int64_t kConvChannels = 32;

/// Tasks of forward and backward: groups of pieces, the blocks of channels of each next to each other.
inline int64_t conv_channel_blocks(const CausalConv1dProblem& p) {
  return ceil_div(p.C, kConvChannels);
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

// ---- selective scan

/// Channels of a forward task of the scan, and positions that are staged, and computed again, at once.
inline constexpr int64_t kScanChannels = 32, kScanBlock = kKeptEvery;

/// Tasks of one sequence, of `width` channels at most, none of which crosses a group.
inline int64_t scan_tasks_of_sequence(const SelectiveScanProblem& p, int64_t width) {
  return p.D == 0 ? 0 : p.G * ceil_div(p.D / p.G, width);
}

struct SelectiveScanParams : SelectiveScanProblem {
  void* out;    // (B,D,L)
  void* state;  // (sequences,D,N), accumulation type
  void* kept;   // (blocks,D,N), accumulation type; null: not wanted
};

/// What is null is not wanted.
struct SelectiveScanBackwardParams : SelectiveScanProblem {
  int64_t range;  // channels of a task
  int64_t sequences, batch;
  int64_t positions, covered;          // of all batch entries; of one, that a sequence has
  const void* kept;                    // (blocks,D,N), accumulation type
  Input grad_out;                      // (B,D,L); null: zeros
  Signal grad_state;                   // (sequences,D,N), accumulation type; null: zeros
  void *grad_u, *grad_delta, *grad_z;  // (B,D,L)
  void* grad_initial_state;            // (sequences,D,N), accumulation type
  void* column_sums;                   // (ranges,positions,2N), accumulation type: of B, of C
  void* channel_sums;                  // (sequences,D,N+2), accumulation type: of A, D, delta_bias
  void *grad_A, *grad_B, *grad_C, *grad_skip, *grad_delta_bias;
};

using SelectiveScanTaskFn = void(const SelectiveScanParams&, int64_t task, void* scratch);
using SelectiveScanLayoutFn = void(const SelectiveScanParams&, int64_t* bytes);
using SelectiveScanBackwardTaskFn = void(const SelectiveScanBackwardParams&, int64_t task,
                                         void* scratch);
using SelectiveScanBackwardLayoutFn = void(const SelectiveScanBackwardParams&, int64_t* bytes);
using SelectiveScanChannelsFn = void(const SelectiveScanBackwardParams&, int64_t first,
                                     int64_t last);

}  // namespace fulgurite
