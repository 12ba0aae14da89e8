// Causal convolutions, scans, random features and linear attention, for C++ programs. Shapes, semantics and errors:
// docs/ops/causal_conv1d.md, selective_scan.md, favor_features.md, linear_attention.md.
//
// Legend: B batch, C channels (D of a scan), L positions, W width of the convolution, N states of a channel, G groups. Of
// linear attention: H heads, Hk of query and key, N queries, M keys, D width of query and key, Dv of value.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>

#include "fulgurite/config.h"

namespace fulgurite {

struct CausalConv1dOptions {
  std::optional<at::Tensor> bias;           // (C)
  std::string activation = "none";          // none, silu
  std::optional<at::Tensor> initial_state;  // (B,C,W−1): the inputs before the first, newest last
  std::optional<at::Tensor>
      cu_seqlens;  // (sequences+1) int32 or int64: B is 1, states have sequences in its place
};

/// x (B,C,L), weight (C,W) -> out (B,C,L), state (B,C,W−1), the last inputs. Differentiable.
FULGURITE_API std::tuple<at::Tensor, at::Tensor> causal_conv1d(
    const at::Tensor& x, const at::Tensor& weight, const CausalConv1dOptions& options = {});

struct SelectiveScanOptions {
  std::optional<at::Tensor> D, delta_bias;  // (D)
  std::optional<at::Tensor> z;              // (B,D,L), a gate
  bool delta_softplus = false;
  std::optional<at::Tensor> initial_state;  // (B,D,N)
  std::optional<at::Tensor> cu_seqlens;     // (sequences+1), as of causal_conv1d
};

/// u and delta (B,D,L), A (D,N), B and C (B,N,L) or (B,G,N,L) -> out (B,D,L), state (B,D,N). Differentiable.
FULGURITE_API std::tuple<at::Tensor, at::Tensor> selective_scan(
    const at::Tensor& u, const at::Tensor& delta, const at::Tensor& A, const at::Tensor& B,
    const at::Tensor& C, const SelectiveScanOptions& options = {});

struct FavorFeaturesOptions {
  double eps = 1e-4;
  std::string kind = "positive";         // positive, hyperbolic
  std::optional<at::Tensor> cu_seqlens;  // (sequences+1), as of causal_conv1d
};

/// x (B,H,N,D), projection (m,D) -> features (B,H,N,m), or (B,H,N,2m) where they are hyperbolic. Differentiable.
FULGURITE_API at::Tensor favor_features(const at::Tensor& x, const at::Tensor& projection,
                                        bool is_query, const FavorFeaturesOptions& options = {});

struct LinearAttentionOptions {
  std::optional<at::Tensor> log_decay;  // (H), (B,H,N) or (B,H,N,D)
  std::optional<at::Tensor> bonus;      // (H,D)
  double scale = 1.0;
  bool causal = true;
  bool normalize = false;
  double eps = 1e-6;
  int64_t exclusive_chunk = 0;
  std::optional<at::Tensor> initial_state;  // (B,H,D,Dv)
  std::optional<at::Tensor> initial_norm;   // (B,H,D)
  std::optional<at::Tensor> cu_seqlens;     // (sequences+1), as of causal_conv1d
};

/// query (B,Hk,N,D), key (B,Hk,M,D), value (B,H,M,Dv) -> out (B,H,N,Dv), state (B,H,D,Dv), norm (B,H,D). Differentiable.
FULGURITE_API std::tuple<at::Tensor, at::Tensor, at::Tensor> linear_attention(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const LinearAttentionOptions& options = {});

}  // namespace fulgurite
