// Causal convolutions, for C++ programs. Shapes, semantics and errors: docs/ops/causal_conv1d.md.
//
// Legend: B batch, C channels, L positions, W width of the convolution.
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

}  // namespace fulgurite
