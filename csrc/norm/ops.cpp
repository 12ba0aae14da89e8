// Schemas of the family and its public C++ functions.
#include "common/define.h"
#include "fulgurite/norm.h"
#include "norm/args.h"

#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(fulgurite, m) {
  const std::string norm =
      "Tensor x, Tensor? weight=None, *, float eps=1e-6, float weight_shift=0.0";
  fulgurite::define(m, "rms_norm(" + norm + ") -> Tensor");
  fulgurite::define(m, "_rms_norm_forward(" + norm + ") -> (Tensor out, Tensor rstd)");
  fulgurite::define(m, "_rms_norm_backward(Tensor grad_out, Tensor rstd, " + norm +
                           ", bool[2] output_mask) -> (Tensor grad_x, Tensor grad_weight)");
}

namespace fulgurite {

Tensor rms_norm(const Tensor& x, const RmsNormOptions& o) {
  return call(RmsNormArgs{x, o.weight, o.eps, o.weight_shift});
}

}  // namespace fulgurite
