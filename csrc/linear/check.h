// Validation and shape inference of the family, once for Meta, CPU and CUDA.
#pragma once

#include "linear/args.h"

namespace fulgurite {

struct CausalConv1dShape {
  c10::SymInt sequences, C, L, W;
};

CausalConv1dShape check_causal_conv1d(const CausalConv1dArgs& args);
CausalConv1dShape check_causal_conv1d_backward(const CausalConv1dBackwardArgs& args);

struct SelectiveScanShape {
  c10::SymInt sequences, D, L, N, G;
};

SelectiveScanShape check_selective_scan(const SelectiveScanArgs& args);
SelectiveScanShape check_selective_scan_backward(const SelectiveScanBackwardArgs& args);
/// States that a recorded forward keeps, at most.
c10::SymInt kept_blocks(const SelectiveScanArgs& args, const SelectiveScanShape& shape);

}  // namespace fulgurite
