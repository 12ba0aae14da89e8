// The causal convolution on the CPU, torch side.
#include "common/check_choice.h"
#include "common/dtype.h"
#include "common/fresh.h"
#include "cpu/huge_pages.h"
#include "cpu/tasks.h"
#include "linear/check.h"
#include "linear/cpu/kernels/params.h"
#include "linear/cpu/tensors.h"

#include <torch/library.h>

namespace fulgurite {

FULGURITE_KERNEL(linear_causal_conv1d, causal_conv1d, CausalConv1dTaskFn);
FULGURITE_KERNEL(linear_causal_conv1d, causal_conv1d_layout, CausalConv1dLayoutFn);
FULGURITE_KERNEL(linear_causal_conv1d_backward, causal_conv1d_backward, CausalConv1dBackwardTaskFn);
FULGURITE_KERNEL(linear_causal_conv1d_backward, causal_conv1d_backward_layout,
                 CausalConv1dBackwardLayoutFn);
FULGURITE_KERNEL(linear_causal_conv1d_backward, causal_conv1d_sums, CausalConv1dSumsFn);

namespace {

/// The exponential and the division of an element's activation.
constexpr int64_t kSiluCost = 16;

void describe(CausalConv1dProblem& p, const CausalConv1dArgs& args, const Sequences& sequences) {
  p.dtype = kernel_dtype(args.x.scalar_type());
  p.activation = choice_of(kConvActivations, args.activation);
  p.C = args.x.size(1);
  p.L = args.x.size(2);
  p.W = args.weight.size(1);
  p.x = signal(args.x);
  p.weight = of_channels(args.weight);
  p.bias = channels(args.bias);
  p.initial_state = signal(args.initial_state);
  p.parts = sequences.pieces();
}

CausalConv1dArgs::Result causal_conv1d_cpu(const CausalConv1dArgs& args) {
  check_causal_conv1d(args);
  const Tensor& x = args.x;
  const Sequences sequences(CausalConv1dArgs::kName, x, args.cu_seqlens);
  Tensor out = on_huge_pages(fresh_like(x));
  Tensor state = at::empty({sequences.count(), x.size(1), args.weight.size(1) - 1}, x.options());
  sequences.clear_tail(out);
  CausalConv1dParams p{};
  describe(p, args, sequences);
  p.out = out.mutable_data_ptr();
  p.state = state.mutable_data_ptr();
  run_kernel(causal_conv1d_kernel, causal_conv1d_layout_kernel, p,
             {conv_tasks(p), x.numel() * (p.W + kSiluCost) + state.numel()});
  return {out, state};
}

CausalConv1dBackwardArgs::Result causal_conv1d_backward_cpu(const CausalConv1dBackwardArgs& args) {
  check_causal_conv1d_backward(args);
  const CausalConv1dArgs& f = args.forward;
  const auto& wanted = args.output_mask;
  const Sequences sequences(CausalConv1dBackwardArgs::kName, f.x, f.cu_seqlens);
  CausalConv1dBackwardParams p{};
  describe(p, f, sequences);
  p.grad_out = signal(args.grad_out);
  p.grad_state = signal(args.grad_state);
  const auto gradient = [&](CausalConv1dInput input, const OptionalTensor& like, void*& place) {
    Tensor grad = fresh_gradient(wanted[input], like, f.x);
    if (wanted[input]) place = grad.mutable_data_ptr();
    return grad;
  };
  Tensor grad_x = on_huge_pages(gradient(kConvX, f.x, p.grad_x));
  Tensor grad_weight = gradient(kConvWeight, f.weight, p.grad_weight);
  Tensor grad_bias = gradient(kConvBias, f.bias, p.grad_bias);
  Tensor grad_initial = gradient(kConvInitialState, f.initial_state, p.grad_initial_state);
  if (wanted[kConvX]) sequences.clear_tail(grad_x);
  Tensor sums;
  if (wanted[kConvWeight] || wanted[kConvBias]) {
    sums = at::empty({p.parts.group_count, p.C, p.W + 1}, accumulate_options(f.x));
    p.sums = sums.mutable_data_ptr();
  }
  run_kernel(causal_conv1d_backward_kernel, causal_conv1d_backward_layout_kernel, p,
             {conv_tasks(p), f.x.numel() * 3 * (p.W + kSiluCost)});
  // Without sequences there is nothing to add, and no pointer to it.
  if (sums.defined()) run_rows(causal_conv1d_sums_kernel, p, p.C, 64, sums.numel());
  return {grad_x, grad_weight, grad_bias, grad_initial};
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, CPU, m) {
  using namespace fulgurite;
  implement<causal_conv1d_cpu>(m);
  implement<causal_conv1d_backward_cpu>(m);
}
