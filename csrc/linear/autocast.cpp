// causal_conv1d's x to the autocast dtype, the scan's inputs to float32; other weights, biases and states as they are given.
#include "common/autocast.h"
#include "linear/args.h"

#include <torch/library.h>

namespace fulgurite {
namespace {

CausalConv1dArgs::Result causal_conv1d_autocast(const CausalConv1dArgs& args) {
  const AutocastTo lower(args.x.device().type());
  CausalConv1dArgs cast = args;
  cast.x = lower(args.x);
  return call(cast);
}

SelectiveScanArgs::Result selective_scan_autocast(const SelectiveScanArgs& args) {
  const AutocastTo float32(args.u.device().type(), at::kFloat);
  SelectiveScanArgs cast = args;
  for (Tensor* t : {&cast.u, &cast.delta, &cast.A, &cast.B, &cast.C}) *t = float32(*t);
  for (OptionalTensor* t : {&cast.D, &cast.z, &cast.delta_bias}) *t = float32(*t);
  return call(cast);
}

void register_autocast(torch::Library& m) {
  implement<causal_conv1d_autocast>(m);
  implement<selective_scan_autocast>(m);
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, AutocastCPU, m) { fulgurite::register_autocast(m); }

TORCH_LIBRARY_IMPL(fulgurite, AutocastCUDA, m) { fulgurite::register_autocast(m); }
