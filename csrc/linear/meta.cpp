// Shapes and dtypes of the results, for fake tensors, export and compile.
#include "common/fresh.h"
#include "linear/check.h"

#include <torch/library.h>

namespace fulgurite {
namespace {

CausalConv1dArgs::Result causal_conv1d_meta(const CausalConv1dArgs& args) {
  const CausalConv1dShape s = check_causal_conv1d(args);
  return {fresh_like(args.x),                                                // out (B,C,L)
          at::empty_symint({s.sequences, s.C, s.W - 1}, args.x.options())};  // state
}

CausalConv1dBackwardArgs::Result causal_conv1d_backward_meta(const CausalConv1dBackwardArgs& args) {
  check_causal_conv1d_backward(args);
  const CausalConv1dArgs& f = args.forward;
  const auto gradient = [&](CausalConv1dInput input, const OptionalTensor& like) {
    return fresh_gradient(args.output_mask[input], like, f.x);
  };
  return {gradient(kConvX, f.x), gradient(kConvWeight, f.weight), gradient(kConvBias, f.bias),
          gradient(kConvInitialState, f.initial_state)};
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, Meta, m) {
  using namespace fulgurite;
  implement<causal_conv1d_meta>(m);
  implement<causal_conv1d_backward_meta>(m);
}
