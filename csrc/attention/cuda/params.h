// What attention's kernels for CUDA are told: the problem (rules/problem.h), and what a card has besides it. Every batch entry
// is a sequence of N queries and M keys; `sequences` is not read, and rule.M and rule.shift are set.
#pragma once

#include "attention/rules/problem.h"

namespace fulgurite {

struct AttentionCudaParams : AttentionProblem {
  int64_t N, M;
  // The keep bits' seed and offset stay on the card: kernels make the rule (make_dropout_rule) from them.
  double dropout_p;
  const int64_t* philox;  // null where dropout_p is 0
  int64_t philox_words;

  Output4 out, lse;  // (B,Hq,N,Dv) of dtype, (B,Hq,N) float32
  bool wide;  // rows of queries, keys, values and results are whole chunks at multiples of 16 bytes
};

/// out and lse of the forward, in p; an incoming gradient that is not there has null data, as has a gradient not asked for.
struct AttentionCudaBackward : AttentionCudaParams {
  Tensor4 grad_out, grad_lse;                // (B,Hq,N,Dv), (B,Hq,N,1)
  Output4 grad_query, grad_key, grad_value;  // of dtype, contiguous
  float* grad_sink;                          // (Hq)
  void* grad_bias;                           // contiguous, in the bias's type
  int64_t bias_shape[4];
  // Of every row of queries: what its scores are weighed by, and δ (backward.cuh). B·Hq·N each.
  float *base, *fine, *delta;
};

}  // namespace fulgurite
