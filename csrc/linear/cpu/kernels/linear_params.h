// What the kernels of linear attention are told besides the problem.
#pragma once

#include "linear/rules/linear_attention.h"

namespace fulgurite {

/// Features whose part of log_decay's gradient is summed by itself: the parts are added in order, however features are dealt
/// out.
inline constexpr int64_t kFeatureUnit = 32;

/// Heads of a group whose gradients of query and key are summed by one task; their sums are then added in order.
inline constexpr int64_t kHeadsAtOnce = 4;

struct LinearAttentionParams : LinearAttentionProblem {
  void* out;           // (B,H,N,Dv)
  void* state;         // (sequences,H,D,Dv), accumulation type
  void* norm;          // (sequences,H,D), accumulation type; null: not wanted
  void* kept;          // (blocks,H,D,columns), accumulation type; null: not wanted
  void* denominators;  // (B,H,N), accumulation type; null: not wanted
  int64_t range;       // columns of value of a task
};

/// What is null is not wanted.
struct LinearAttentionBackwardParams : LinearAttentionProblem {
  Heads grad_out;               // (B,H,N,Dv); null: zeros
  Heads grad_state;             // (sequences,H,D,Dv), accumulation type; null: zeros
  Heads grad_norm;              // (sequences,H,D,1), accumulation type; null: zeros
  Heads out;                    // (B,H,N,Dv)
  const void* kept;             // (blocks,H,D,columns)
  const void* denominators;     // (B,H,N)
  int64_t features;             // of a task for gradients of query, key, decays and states
  int64_t values;               // columns of a task for value's; 0: the same tasks
  void *grad_query, *grad_key;  // (B,Hk,N,D), (B,Hk,M,D)
  void *query_sums, *key_sums;  // (parts of a group,B,Hk,N,D), accumulation type
  void* grad_value;             // (B,H,M,Dv)
  void* grad_log_decay;         // as log_decay
  void* decay_sums;             // (units,B,H,N), accumulation type
  void* grad_bonus;             // (H,D)
  void* bonus_sums;             // (sequences,H,D), accumulation type
  void* grad_initial_state;     // (sequences,H,D,Dv), accumulation type
  void* grad_initial_norm;      // (sequences,H,D), accumulation type
  bool decay_of_heads;          // log_decay is (H)

  int64_t group_parts() const { return Hk == 0 ? 0 : ceil_div(group(), kHeadsAtOnce); }
  int64_t feature_tasks() const {
    return D == 0 ? 0 : sequences * Hk * group_parts() * ceil_div(D, features);
  }
  int64_t value_tasks() const { return values == 0 ? 0 : sequences * H * ceil_div(Dv, values); }
  int64_t units() const { return ceil_div(D, kFeatureUnit); }
};

using LinearAttentionTaskFn = void(const LinearAttentionParams&, int64_t task, void* scratch);
using LinearAttentionLayoutFn = void(const LinearAttentionParams&, int64_t* bytes);
using LinearAttentionBackwardTaskFn = void(const LinearAttentionBackwardParams&, int64_t task,
                                           void* scratch);
using LinearAttentionBackwardLayoutFn = void(const LinearAttentionBackwardParams&, int64_t* bytes);
using LinearAttentionSumsFn = void(const LinearAttentionBackwardParams&, int64_t first,
                                   int64_t last);

}  // namespace fulgurite
