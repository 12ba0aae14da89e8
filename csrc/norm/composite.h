// The operator and its gradients made of ATen operations, which have derivatives of every order in both modes.
#pragma once

#include "norm/args.h"

namespace fulgurite {

Tensor rms_norm_of_aten(const RmsNormArgs& args);
RmsNormBackwardArgs::Result rms_norm_backward_of_aten(const RmsNormBackwardArgs& args);

}  // namespace fulgurite
