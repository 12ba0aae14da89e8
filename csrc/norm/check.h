// Shapes and types of the family's calls: an error before anything is computed.
#pragma once

#include "common/check.h"
#include "norm/args.h"

namespace fulgurite {

void check_rms_norm(const RmsNormArgs& args);
void check_rms_norm_backward(const RmsNormBackwardArgs& args);

/// Of the sums of squares' inverse roots: x without its last dimension.
inline c10::SymIntArrayRef rstd_sizes(const Tensor& x) {
  return x.sym_sizes().slice(0, static_cast<size_t>(x.dim()) - 1);
}

}  // namespace fulgurite
