// Attention, for C++ programs. Shapes, semantics and errors: docs/ops/attention.md.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

#include "fulgurite/config.h"

namespace fulgurite {

/// Everything beyond query, key and value. Defaults are those of torch.ops.fulgurite.attention.
struct AttentionOptions {
  std::optional<at::Tensor> bias, mask, sink, alibi_slopes, block_layout;
  int64_t block_size = 0;
  std::optional<double> scale;  // none: 1/√D
  bool causal = false;
  std::string align = "bottom_right";
  int64_t window_left = -1, window_right = -1;
  int64_t sink_tokens = 0;
  int64_t chunk_size = 0;
  double softcap = 0.0;
  std::string score = "softmax";
  double score_scale = 1.0;
  double dropout_p = 0.0;
  std::optional<at::Tensor> philox;
};

/// query (B,Hq,N,D), key (B,Hkv,M,D), value (B,Hkv,M,Dv) -> out (B,Hq,N,Dv), lse (B,Hq,N). Differentiable.
FULGURITE_API std::tuple<at::Tensor, at::Tensor> attention(const at::Tensor& query,
                                                           const at::Tensor& key,
                                                           const at::Tensor& value,
                                                           const AttentionOptions& options = {});

struct AttentionVarlenOptions {
  std::optional<at::Tensor> sink, alibi_slopes;
  std::optional<double> scale;
  bool causal = false;
  std::string align = "bottom_right";
  int64_t window_left = -1, window_right = -1;
  int64_t sink_tokens = 0;
  double softcap = 0.0;
  double dropout_p = 0.0;
  std::optional<at::Tensor> philox;
};

/// Packed sequences: query (Tq,Hq,D), key (Tk,Hkv,D), value (Tk,Hkv,Dv), offsets (sequences+1) int32 or int64
/// -> out (Tq,Hq,Dv), lse (Hq,Tq). Differentiable.
FULGURITE_API std::tuple<at::Tensor, at::Tensor> attention_varlen(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& cu_seqlens_q, const at::Tensor& cu_seqlens_k,
    const AttentionVarlenOptions& options = {});

struct AttentionDecodeOptions {
  std::optional<at::Tensor> page_table, mask, sink, alibi_slopes;
  std::optional<double> scale;
  bool causal = true;
  int64_t window_left = -1;
  int64_t sink_tokens = 0;
  double softcap = 0.0;
};

/// query (B,Hq,N,D) over caches (B,Hkv,Mmax,·), or (P,Hkv,page,·) with a page table; cache_lens (B) int32 or int64
/// -> out (B,Hq,N,Dv), lse (B,Hq,N). No gradient.
FULGURITE_API std::tuple<at::Tensor, at::Tensor> attention_decode(
    const at::Tensor& query, const at::Tensor& key_cache, const at::Tensor& value_cache,
    const at::Tensor& cache_lens, const AttentionDecodeOptions& options = {});

/// Partial results (…,N,D) with their lses (…,N) as one. Differentiable.
FULGURITE_API std::tuple<at::Tensor, at::Tensor> attention_merge(at::TensorList outs,
                                                                 at::TensorList lses);

/// x (…,N,D), cos and sin broadcastable to (…,N,R/2). Differentiable in x.
FULGURITE_API at::Tensor rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                              bool interleaved = false, bool conjugate = false);

}  // namespace fulgurite
