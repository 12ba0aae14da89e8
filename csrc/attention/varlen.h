// Validation of packed sequences, once for Meta, CPU and CUDA.
#pragma once

#include "attention/check.h"
#include "attention/varlen_args.h"

namespace fulgurite {

struct VarlenShape {
  c10::SymInt sequences, Hq, Hkv, query_rows, key_rows, D, Dv;
};

VarlenShape check_varlen(const VarlenArgs& args);
VarlenShape check_varlen_backward(const VarlenBackwardArgs& args);

}  // namespace fulgurite
