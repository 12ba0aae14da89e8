// Validation of attention_merge, once for Meta, CPU and CUDA.
#pragma once

#include "attention/args.h"

#include <ATen/core/List.h>

#include <vector>

namespace fulgurite {

using MergeGradients = std::tuple<std::vector<Tensor>, std::vector<Tensor>>;

struct MergeArgs {
  static constexpr const char* kName = "attention_merge";
  using Result = AttentionResult;
  TensorList outs, lses;
  FULGURITE_MEMBERS(outs, lses)
};

struct MergeBackwardArgs {
  static constexpr const char* kName = "_attention_merge_backward";
  using Result = MergeGradients;
  OptionalTensor grad_out, grad_lse;
  TensorList outs, lses;
  Tensor lse;
  c10::List<bool> output_mask = c10::List<bool>();  // of outs, then of lses
  FULGURITE_MEMBERS(grad_out, grad_lse, outs, lses, lse, output_mask)
};

void check_merge(const MergeArgs& args);
void check_merge_backward(const MergeBackwardArgs& args);

}  // namespace fulgurite
