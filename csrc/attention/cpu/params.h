// What the kernels are told: plain pointers, sizes and strides.
//
// Legend: B batch, Hq query heads, Hkv key/value heads, group = Hq/Hkv, N queries, M keys, D query/key width, Dv value width.
#pragma once

#include <cstdint>

#include "attention/scores.h"
#include "simd/types.h"

namespace fulgurite {

/// A 4-dimensional tensor of any strides, in elements.
struct Tensor4 {
  const void* data;
  int64_t strides[4];
};

inline constexpr int64_t kQueryBlock = 96;  // rows of a tile: whole groups of 6
inline constexpr int64_t kKeyBlock = 128;   // columns of a tile: whole panels on every instruction set

struct AttentionParams {
  Dtype dtype;
  int64_t B, Hq, Hkv, group, N, M, D, Dv;
  double scale;
  ScoreRule rule;
  Tensor4 query, key, value;  // (B,Hq,N,D) (B,Hkv,M,D) (B,Hkv,M,Dv)
  int64_t query_blocks, key_blocks;

  // Packed once per key block of a key/value head, in the accumulation type; null where a pass does not need it.
  void* key_transposed;    // Kᵀ: D rows of keys
  void* key_rows;          // K: keys by D
  void* value_transposed;  // Vᵀ
  void* value_rows;        // V
  bool* key_finite;        // per block: every element is finite
  bool* value_finite;

  // forward, contiguous
  void* out;  // (B,Hq,N,Dv) of dtype
  void* lse;  // (B,Hq,N) of the accumulation type

  // backward: out and lse of the forward; a gradient that is not there has null data
  Tensor4 saved_out, grad_out;  // (B,Hq,N,Dv)
  Tensor4 saved_lse, grad_lse;  // (B,Hq,N,·)
  void *grad_query, *grad_key, *grad_value;  // contiguous, in dtype
};

/// Sizes that depend on the instruction set's panel width. Elements are of the accumulation type.
struct AttentionLayout {
  int64_t key_transposed, key_rows, value_transposed, value_rows;  // elements of one packed block
  int64_t forward_scratch, grad_query_scratch, grad_key_value_scratch;  // bytes of one task
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
  int64_t x_step, cos_step, sin_step;  // strides of the last dimension
  const void *x, *cos, *sin;
  void* out;  // contiguous
};
using RopeTaskFn = void(const RopeParams&, int64_t first_row, int64_t last_row);

}  // namespace fulgurite
