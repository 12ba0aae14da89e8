// Shapes and dtypes of the results, for fake tensors, export and compile.
#include "common/check.h"
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

std::tuple<Tensor, Tensor> fresh_scan(const SelectiveScanArgs& args, const SelectiveScanShape& s) {
  return {fresh_like(args.u),                                                      // out (B,D,L)
          at::empty_symint({s.sequences, s.D, s.N}, accumulate_options(args.u))};  // state
}

SelectiveScanArgs::Result selective_scan_meta(const SelectiveScanArgs& args) {
  return fresh_scan(args, check_selective_scan(args));
}

SelectiveScanForwardArgs::Result selective_scan_forward_meta(const SelectiveScanForwardArgs& args) {
  const SelectiveScanShape s = check_selective_scan(args);
  const auto [out, state] = fresh_scan(args, s);
  return {out, state,
          at::empty_symint({kept_blocks(args, s), s.D, s.N}, accumulate_options(args.u))};
}

SelectiveScanBackwardArgs::Result selective_scan_backward_meta(
    const SelectiveScanBackwardArgs& args) {
  check_selective_scan_backward(args);
  const SelectiveScanArgs& f = args.forward;
  const auto gradient = [&](SelectiveScanInput input, const OptionalTensor& like) {
    return fresh_gradient(args.output_mask[input], like, f.u);
  };
  return {gradient(kScanU, f.u),
          gradient(kScanDelta, f.delta),
          gradient(kScanA, f.A),
          gradient(kScanB, f.B),
          gradient(kScanC, f.C),
          gradient(kScanD, f.D),
          gradient(kScanZ, f.z),
          gradient(kScanDeltaBias, f.delta_bias),
          gradient(kScanInitialState, f.initial_state)};
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, Meta, m) {
  using namespace fulgurite;
  implement<causal_conv1d_meta>(m);
  implement<causal_conv1d_backward_meta>(m);
  implement<selective_scan_meta>(m);
  implement<selective_scan_forward_meta>(m);
  implement<selective_scan_backward_meta>(m);
}
