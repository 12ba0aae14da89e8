// Validation of attention_merge, once for Meta, CPU and CUDA.
#pragma once

#include "attention/args.h"

#include <ATen/core/List.h>

#include <vector>

namespace fulgurite {

using at::TensorList;
using MergeGradients = std::tuple<std::vector<Tensor>, std::vector<Tensor>>;
using MergeSignature = AttentionResult(TensorList, TensorList);
using MergeBackwardSignature = MergeGradients(const OptionalTensor&, const OptionalTensor&,
                                              TensorList, TensorList, const Tensor&,
                                              const c10::List<bool>&);

void check_merge(TensorList outs, TensorList lses);
void check_merge_backward(const OptionalTensor& grad_out, const OptionalTensor& grad_lse,
                          TensorList outs, TensorList lses, const Tensor& lse,
                          const c10::List<bool>& output_mask);

}  // namespace fulgurite
