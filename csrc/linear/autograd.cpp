// Gradients. The backward operators have none of their own: differentiating twice raises.
#include "common/saved_arguments.h"
#include "linear/args.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

namespace fulgurite {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct CausalConv1dFunction : torch::autograd::Function<CausalConv1dFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight,
                               const OptionalTensor& bias, const OptionalTensor& initial_state,
                               const CausalConv1dArgs& args) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [out, state] = call(args);
    variable_list saved;
    save(ctx, args, saved);
    ctx->save_for_backward(saved);
    ctx->set_materialize_grads(false);
    return {out, state};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined() && !grads[1].defined())
      return variable_list(kInputs<CausalConv1dArgs> + 1);
    const auto forward = saved_arguments<CausalConv1dArgs>(ctx, ctx->get_saved_variables(), 0);
    const auto wanted = wanted_inputs(ctx, forward);
    const BelowAutogradUnlessRecorded below(grads);
    return gradient_list(
        call(CausalConv1dBackwardArgs{if_defined(grads[0]), if_defined(grads[1]), forward, wanted}),
        wanted);
  }
};

CausalConv1dArgs::Result causal_conv1d_autograd(const CausalConv1dArgs& args) {
  const variable_list results = apply<CausalConv1dFunction>(args);
  return {results[0], results[1]};
}

struct SelectiveScanFunction : torch::autograd::Function<SelectiveScanFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& u, const Tensor& delta,
                               const Tensor& A, const Tensor& B, const Tensor& C,
                               const OptionalTensor& D, const OptionalTensor& z,
                               const OptionalTensor& delta_bias,
                               const OptionalTensor& initial_state, const SelectiveScanArgs& args) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [out, state, kept] = call(SelectiveScanForwardArgs{args});
    variable_list saved{kept};
    save(ctx, args, saved);
    ctx->save_for_backward(saved);
    ctx->set_materialize_grads(false);
    return {out, state};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined() && !grads[1].defined())
      return variable_list(kInputs<SelectiveScanArgs> + 1);
    const variable_list saved = ctx->get_saved_variables();
    const auto forward = saved_arguments<SelectiveScanArgs>(ctx, saved, 1);
    const auto wanted = wanted_inputs(ctx, forward);
    const BelowAutogradUnlessRecorded below(grads);
    return gradient_list(call(SelectiveScanBackwardArgs{if_defined(grads[0]), if_defined(grads[1]),
                                                        saved[0], forward, wanted}),
                         wanted);
  }
};

/// Where nothing is recorded no states are kept.
SelectiveScanArgs::Result selective_scan_autograd(const SelectiveScanArgs& args) {
  if (!is_recorded(args)) return below_autograd(args);
  const variable_list results = apply<SelectiveScanFunction>(args);
  return {results[0], results[1]};
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, Autograd, m) {
  fulgurite::implement<fulgurite::causal_conv1d_autograd>(m);
  fulgurite::implement<fulgurite::selective_scan_autograd>(m);
  for (const char* name :
       {"_causal_conv1d_backward", "_selective_scan_forward", "_selective_scan_backward"})
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
}
