// Expert choice: experts take tokens. Its calls and their validation, for Meta, CPU and CUDA.
#pragma once

#include "moe/args.h"

namespace fulgurite {

using ExpertChoiceResult = std::tuple<Tensor, Tensor>;  // weights, token_ids

ExpertChoiceResult call_expert_choice(const Tensor& logits, const c10::SymInt& capacity);

void check_expert_choice(const Tensor& logits, const c10::SymInt& capacity);
void check_expert_choice_backward(const Tensor& grad_weights, const Tensor& logits,
                                  const Tensor& token_ids);

}  // namespace fulgurite
