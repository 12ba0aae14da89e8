// Gradients. What is differentiated twice, or in forward mode, is made of ATen operations (composite.h).
#include "common/saved_arguments.h"
#include "norm/composite.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

namespace fulgurite {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct RmsNormFunction : torch::autograd::Function<RmsNormFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor&, const OptionalTensor&,
                               const RmsNormArgs& args) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [out, rstd] = call(RmsNormForwardArgs{args});
    variable_list saved{rstd};
    save(ctx, args, saved);
    ctx->save_for_backward(saved);
    ctx->set_materialize_grads(false);
    return {out};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return variable_list(kInputs<RmsNormArgs> + 1);
    const variable_list saved = ctx->get_saved_variables();
    const auto forward = saved_arguments<RmsNormArgs>(ctx, saved, 1);
    const auto wanted = wanted_inputs(ctx, forward);
    const BelowAutogradUnlessRecorded below(grads);
    return gradient_list(call(RmsNormBackwardArgs{grads[0], saved[0], forward, wanted}), wanted);
  }
};

Tensor rms_norm_autograd(const RmsNormArgs& args) {
  if (has_tangent(args)) return rms_norm_of_aten(args);
  return is_recorded(args) ? apply<RmsNormFunction>(args)[0] : below_autograd(args);
}

RmsNormBackwardArgs::Result rms_norm_backward_autograd(const RmsNormBackwardArgs& args) {
  return is_recorded(args) || has_tangent(args) ? rms_norm_backward_of_aten(args)
                                                : below_autograd(args);
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, Autograd, m) {
  using namespace fulgurite;
  implement<rms_norm_autograd>(m);
  implement<rms_norm_backward_autograd>(m);
  m.impl("_rms_norm_forward", torch::autograd::autogradNotImplementedFallback());
}
