// Normalisation of rows, for C++ programs. Shapes, semantics and errors: docs/ops/rms_norm.md.
//
// Legend: H width of a row.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "fulgurite/config.h"

namespace fulgurite {

struct RmsNormOptions {
  std::optional<at::Tensor> weight;  // (H)
  double eps = 1e-6;                 // added to the mean of squares
  double weight_shift = 0;           // added to weight: 1 for weights that are stored around 0
};

/// x (…,H) -> x / √(mean x² + eps) · (weight + weight_shift), over the last dimension. Differentiable.
FULGURITE_API at::Tensor rms_norm(const at::Tensor& x, const RmsNormOptions& options = {});

}  // namespace fulgurite
