#include "norm/composite.h"

#include "common/check.h"

#include <ATen/ExpandUtils.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>

namespace fulgurite {
namespace {

/// What the formulas are made of, in the accumulation type.
struct Wide {
  at::ScalarType dtype;
  Tensor rstd, normal;    // (…,1), (…,H)
  OptionalTensor factor;  // weight + weight_shift

  explicit Wide(const RmsNormArgs& a) : dtype(accumulate_type(a.x.scalar_type())) {
    const Tensor x = a.x.to(dtype);
    rstd = (x.square().mean(-1, /*keepdim=*/true) + a.eps).rsqrt();
    normal = x * rstd;
    if (a.weight) factor = a.weight->to(dtype) + a.weight_shift;
  }
  Tensor scaled(const Tensor& t) const { return factor ? t * *factor : t; }
};

}  // namespace

Tensor rms_norm_of_aten(const RmsNormArgs& args) {
  const Wide wide(args);
  return wide.scaled(wide.normal).to(args.x.scalar_type());
}

RmsNormBackwardArgs::Result rms_norm_backward_of_aten(const RmsNormBackwardArgs& args) {
  const RmsNormArgs& f = args.forward;
  const Wide wide(f);
  const Tensor grad = args.grad_out.to(wide.dtype), scaled = wide.scaled(grad);
  Tensor grad_x = at::empty({0}, f.x.options()), grad_weight = grad_x;
  if (args.output_mask[kNormX]) {
    const Tensor mean = (scaled * wide.normal).mean(-1, /*keepdim=*/true);
    grad_x = ((scaled - wide.normal * mean) * wide.rstd).to(f.x.scalar_type());
  }
  if (args.output_mask[kNormWeight])
    grad_weight = at::sum_to(grad * wide.normal, f.weight->sym_sizes()).to(f.weight->scalar_type());
  return {grad_x, grad_weight};
}

}  // namespace fulgurite
