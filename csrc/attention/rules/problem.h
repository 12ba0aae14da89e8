// One call of attention as every device sees it: plain pointers, sizes and strides.
//
// Legend: B batch, Hq query heads, Hkv key/value heads, group = Hq/Hkv, N queries, M keys, D query/key width, Dv value width.
#pragma once

#include <cstdint>

#include "attention/rules/scores.h"
#include "simd/types.h"

namespace fulgurite {

/// A tensor of heads of rows, any strides, in elements: (batch, head, row, column). Packed sequences have batch stride 0.
struct Tensor4 {
  const void* data;
  int64_t strides[4];
};
struct Output4 {
  void* data;          // null: not wanted
  int64_t strides[3];  // the last dimension is contiguous
};

/// A batch entry, or one of the packed sequences. Blocks are numbered over all sequences.
struct Sequence {
  int64_t query_start, N, key_start, M;
  int64_t query_rows;              // of a query block
  int64_t query_block, key_block;  // numbers of its first blocks
  int64_t packed_start,
      packed_keys;  // its keys in the packed copies, M rounded up to whole vectors
};

struct AttentionProblem {
  Dtype dtype;
  int64_t Hq, Hkv, group, D, Dv;
  double scale, softcap, score_scale;
  // Without softcap, bias and slopes the scores are left as the bare products, and softmax multiplies them by their unit,
  // the scale, on the way. Else the unit is 1.
  bool plain_scores;
  double score_unit;
  ScoreKind score;
  ScoreRule rule;  // M and shift: of the sequence at hand, set by the task
  bool bottom_right;
  DropoutRule dropout;

  const Sequence* sequences;            // B of them
  int64_t B, query_blocks, key_blocks;  // over all sequences

  Tensor4 query, key, value;  // (B,Hq,N,D) (B,Hkv,M,D) (B,Hkv,M,Dv)
  const void* sink;           // (Hq) of the accumulation type, or null
  const void* alibi_slopes;   // (1 or B, Hq) of the accumulation type, or null
  int64_t alibi_batch_stride;
};

}  // namespace fulgurite
