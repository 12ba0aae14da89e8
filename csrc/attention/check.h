// Validation and shape inference of the attention family, once for Meta, CPU and CUDA.
#pragma once

#include "attention/args.h"

namespace fulgurite {

struct AttentionShape {
  c10::SymInt B, Hq, Hkv, N, M, D, Dv;
};

AttentionShape check_attention(const AttentionArgs& args);
AttentionShape check_attention_backward(const AttentionBackwardArgs& args);
void check_rope(const Tensor& x, const Tensor& cos, const Tensor& sin);

/// The factor of q·k: the given one, or 1/√D.
double attention_scale(const std::optional<double>& scale, const Tensor& query);

}  // namespace fulgurite
