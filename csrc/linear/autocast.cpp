// causal_conv1d's x to the autocast dtype; weights, biases and states as they are given.
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

void register_autocast(torch::Library& m) { implement<causal_conv1d_autocast>(m); }

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, AutocastCPU, m) { fulgurite::register_autocast(m); }

TORCH_LIBRARY_IMPL(fulgurite, AutocastCUDA, m) { fulgurite::register_autocast(m); }
