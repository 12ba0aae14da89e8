// What the kernels are told: the problem (rules/problem.h), and what each pass has besides it.
#pragma once

#include <cstdint>

#include "attention/rules/problem.h"

namespace fulgurite {

inline constexpr int64_t kMostQueryRows = 192;  // of a tile, on any instruction set
inline constexpr int64_t kKeyBlock =
    128;  // columns of a tile: whole panels on every instruction set

// Key blocks of a head add to dQ in as many chains, block j in chain j mod kQueryParts: each chain holds a part of dQ.
inline constexpr int64_t kQueryParts = 4;

inline constexpr int64_t kBiasChunk = 4096;  // elements of dbias that one task sums

/// Keys and values as operands, block by block of each key/value head (packed.h): packed by the task that reads them, or before,
/// null where a pass does not need it.
struct AttentionPacking {
  bool packs_in_tasks;
  void *key_transposed, *key_rows, *value_transposed, *value_rows;
  bool *key_finite, *value_finite;  // per block: every element is finite
};

struct AttentionForward {
  Output4 out;  // (B,Hq,N,Dv) of dtype
  Output4 lse;  // (B,Hq,N) of the accumulation type
};

/// out and lse of the forward; an incoming gradient that is not there has null data.
struct AttentionBackward {
  Tensor4 saved_out, grad_out;  // (B,Hq,N,Dv)
  Tensor4 saved_lse, grad_lse;  // (B,Hq,N,·)
  // Of every block of query rows: δ in the accumulation type, query_block_rows each, and whether its rows are finite.
  void* delta;
  bool *query_finite, *grad_out_finite;
  int64_t query_block_rows;
  // Rows whose lse is too coarse (rules/row_statistics.h): whether there are any, atomic, and then, laid out as δ is, their
  // maximum m and 1/Σ exp(s − m) apart; null where none are.
  int64_t* coarse_rows;
  void *row_max, *row_inverse_sum;
  Output4 grad_query, grad_key, grad_value;  // of dtype
  // kQueryParts of every sequence and key/value head, of the group's dQ: rows of query_part elements of the accumulation type.
  void* const* query_parts;
  int64_t* tiles_done;  // of each task of the backward, atomic (query_order.h)
  void* grad_bias;      // contiguous, in the bias's shape and dtype
  // With parts, the tasks of the backward add dbias up themselves: task q of a head takes the batch entries q, q +
  // batch_stride, … in order and has a part of its own. Without, batch_stride is B.
  void* grad_bias_parts;
  bool stores_bias;  // every element of dbias is one dS: the tasks write it where it belongs
  int64_t batch_stride;
  int64_t bias_shape[4];
  void* grad_sink;  // (Hq) of the accumulation type
};

struct AttentionParams : AttentionProblem, AttentionPacking, AttentionForward, AttentionBackward {
  int64_t *tiles_seen, *tiles_skipped;  // atomic counters, for explain
};

/// Sizes that depend on the instruction set.
struct AttentionLayout {
  int64_t forward_rows, backward_rows;                             // of a tile, at most
  int64_t key_multiple;                                            // of packed keys
  int64_t key_transposed, key_rows, value_transposed, value_rows;  // bytes of one packed key
  int64_t query_part;  // elements of a row of dQ's parts, of the accumulation type
  int64_t forward_scratch, backward_scratch, reduce_query_scratch, grad_bias_scratch,
      normalise_scratch;  // bytes of one task
};

using AttentionLayoutFn = void(const AttentionParams&, AttentionLayout*);
using AttentionTaskFn = void(const AttentionParams&, int64_t task, void* scratch);

inline constexpr int kRopeDims = 16;

struct RopeParams {
  Dtype dtype;
  bool float32_tables;  // cos and sin are float32 beside another dtype of x
  bool interleaved, conjugate;
  int64_t D, R;  // width of x, rotated width
  // The dimensions before the last: rows are their product; a row's offset is Σ index·stride.
  int dims;
  int64_t sizes[kRopeDims], x_strides[kRopeDims], cos_strides[kRopeDims], sin_strides[kRopeDims];
  int64_t x_column_stride, cos_column_stride, sin_column_stride;  // strides of the last dimension
  const void *x, *cos, *sin;
  void* out;  // contiguous
};
using RopeTaskFn = void(const RopeParams&, int64_t first_row, int64_t last_row);

}  // namespace fulgurite
