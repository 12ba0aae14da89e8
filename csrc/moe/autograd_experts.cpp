// Gradients of the experts and of the grouped product. Differentiating twice raises.
#include "common/saved_arguments.h"
#include "moe/forward_mode.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

namespace fulgurite {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct ExpertsFunction : torch::autograd::Function<ExpertsFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& weights,
                               const Tensor& w_in, const Tensor& w_out, const OptionalTensor& b_in,
                               const OptionalTensor& b_out, const ExpertsArgs& args) {
    at::AutoDispatchBelowADInplaceOrView below;
    Tensor y, hidden;
    if (args.save_hidden)
      std::tie(y, hidden) = call(ExpertsForwardArgs{args});
    else
      y = call(args);
    variable_list saved{hidden};
    save(ctx, args, saved);
    ctx->save_for_backward(saved);
    return {y};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const auto forward = saved_arguments<ExpertsArgs>(ctx, saved, 1);
    const auto wanted = wanted_inputs(ctx, forward);
    return gradient_list(call(ExpertsBackwardArgs{grads[0], forward, if_defined(saved[0]), wanted}),
                         wanted);
  }
};

Tensor experts_autograd(const ExpertsArgs& args) {
  if (!is_recorded(args)) {
    const Tensor y = below_autograd(args);
    if (has_tangent(args))
      y._set_fw_grad(experts_tangent(args), /*level=*/0, /*is_inplace_op=*/false);
    return y;
  }
  return apply<ExpertsFunction>(args)[0];
}

struct GroupedMmFunction : torch::autograd::Function<GroupedMmFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight,
                               const OptionalTensor& bias, const GroupedMmArgs& args) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({savable(x), savable(weight), savable(args.offsets)});
    ctx->saved_data["transposed"] = args.transposed;
    ctx->saved_data["bias"] = bias.has_value();
    return {call(args)};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const std::array<bool, 3> wanted{ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                     ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2)};
    return gradient_list(
        call(GroupedMmBackwardArgs{grads[0], saved[0], saved[1], saved[2],
                                   ctx->saved_data["transposed"].toBool(), wanted}),
        wanted);
  }
};

Tensor grouped_mm_autograd(const GroupedMmArgs& args) { return apply<GroupedMmFunction>(args)[0]; }

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, Autograd, m) {
  using namespace fulgurite;
  implement<experts_autograd>(m);
  implement<grouped_mm_autograd>(m);
  for (const char* name :
       {"_moe_experts_forward", "_moe_experts_backward", "_moe_grouped_mm_backward"})
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
}
