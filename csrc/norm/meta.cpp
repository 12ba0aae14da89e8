// Shapes and dtypes of the results, for fake tensors, export and compile.
#include "common/fresh.h"
#include "norm/check.h"

#include <torch/library.h>

namespace fulgurite {
namespace {

Tensor rms_norm_meta(const RmsNormArgs& args) {
  check_rms_norm(args);
  return fresh_like(args.x);
}

RmsNormForwardArgs::Result rms_norm_forward_meta(const RmsNormForwardArgs& args) {
  return {rms_norm_meta(args), at::empty_symint(rstd_sizes(args.x), accumulate_options(args.x))};
}

RmsNormBackwardArgs::Result rms_norm_backward_meta(const RmsNormBackwardArgs& args) {
  check_rms_norm_backward(args);
  const RmsNormArgs& f = args.forward;
  return {fresh_gradient(args.output_mask[kNormX], f.x),
          fresh_gradient(args.output_mask[kNormWeight], f.weight, f.x)};
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, Meta, m) {
  using namespace fulgurite;
  implement<rms_norm_meta>(m);
  implement<rms_norm_forward_meta>(m);
  implement<rms_norm_backward_meta>(m);
}
