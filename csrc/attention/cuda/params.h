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

}  // namespace fulgurite
