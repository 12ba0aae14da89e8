// Validation and shape inference of the family, once for Meta, CPU and CUDA.
#pragma once

#include "linear/args.h"

namespace fulgurite {

struct CausalConv1dShape {
  c10::SymInt sequences, C, L, W;
};

CausalConv1dShape check_causal_conv1d(const CausalConv1dArgs& args);
CausalConv1dShape check_causal_conv1d_backward(const CausalConv1dBackwardArgs& args);

}  // namespace fulgurite
