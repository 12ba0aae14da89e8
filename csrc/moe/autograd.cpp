// Gradients. The backward operators have none of their own: differentiating twice raises. The
// exception is permute, whose gradient is moe_combine. Those of the experts: autograd_experts.cpp.
#include "common/mutation.h"
#include "common/saved_arguments.h"
#include "moe/forward_mode.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

namespace fulgurite {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// ---- routing

struct RouteFunction : torch::autograd::Function<RouteFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& logits, const RouteArgs& args) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [weights, ids, counts] = call(args);
    ctx->save_for_backward({logits, saved_output(ids)});
    ctx->saved_data["score"] = std::string(args.score);
    ctx->saved_data["renormalize"] = args.renormalize;
    ctx->saved_data["eps"] = args.eps;
    ctx->saved_data["scale"] = args.scale;
    ctx->mark_non_differentiable({ids, counts});
    ctx->set_materialize_grads(false);
    return {weights, ids, counts};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined() || !ctx->needs_input_grad(0)) return variable_list(2);
    const variable_list saved = ctx->get_saved_variables();
    const BelowAutogradUnlessRecorded below(grads);
    return {call(RouteBackwardArgs{grads[0],
                                   saved[0],
                                   saved[1],
                                   ctx->saved_data["score"].toStringRef(),
                                   ctx->saved_data["renormalize"].toBool(),
                                   ctx->saved_data["eps"].toDouble(),
                                   ctx->saved_data["scale"].toDouble(),
                                   {true}}),
            Tensor()};
  }
};

RouteResult route_autograd(const RouteArgs& args) {
  if (!is_recorded(args)) {
    const RouteResult result = below_autograd(args);
    if (has_tangent(args))
      std::get<0>(result)._set_fw_grad(route_tangent(args, std::get<1>(result)), /*level=*/0,
                                       /*is_inplace_op=*/false);
    return result;
  }
  const variable_list results = apply<RouteFunction>(args);
  return {results[0], results[1], results[2]};
}

// ---- losses

/// A loss of logits alone: Args its operator's, BackwardArgs its gradient's.
template <class Args, class BackwardArgs>
struct LossFunction : torch::autograd::Function<LossFunction<Args, BackwardArgs>> {
  static variable_list forward(AutogradContext* ctx, const Tensor& logits, const Args& args) {
    at::AutoDispatchBelowADInplaceOrView below;
    variable_list saved;
    save(ctx, args, saved);
    ctx->save_for_backward(saved);
    return {call(args)};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto forward = saved_arguments<Args>(ctx, ctx->get_saved_variables(), 0);
    return {call(BackwardArgs{grads[0], forward, {true}}), Tensor()};
  }
};

Tensor balance_autograd(const BalanceArgs& args) {
  return apply<LossFunction<BalanceArgs, BalanceBackwardArgs>>(args)[0];
}

Tensor z_loss_autograd(const ZLossArgs& args) {
  return apply<LossFunction<ZLossArgs, ZLossBackwardArgs>>(args)[0];
}

// ---- permute, combine

struct PermuteFunction : torch::autograd::Function<PermuteFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const PermuteArgs& args) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({savable(args.inverse)});
    return call(args);
  }

  /// Every token adds up what its copies received.
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    return {call(CombineArgs{grads[0], ctx->get_saved_variables()[0], std::nullopt}), Tensor()};
  }
};

Tensor permute_autograd(const PermuteArgs& args) { return apply<PermuteFunction>(args); }

struct CombineFunction : torch::autograd::Function<CombineFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& y, const OptionalTensor& weights,
                               const CombineArgs& args) {
    at::AutoDispatchBelowADInplaceOrView below;
    variable_list saved;
    save(ctx, args, saved);
    ctx->save_for_backward(saved);
    return {call(args)};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto forward = saved_arguments<CombineArgs>(ctx, ctx->get_saved_variables(), 0);
    const auto wanted = wanted_inputs(ctx, forward);
    return gradient_list(call(CombineBackwardArgs{grads[0], forward, wanted}), wanted);
  }
};

Tensor combine_autograd(const CombineArgs& args) { return apply<CombineFunction>(args)[0]; }

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, Autograd, m) {
  using namespace fulgurite;
  implement<route_autograd>(m);
  implement<balance_autograd>(m);
  implement<z_loss_autograd>(m);
  implement<permute_autograd>(m);
  implement<combine_autograd>(m);
  for (const char* name : {"_moe_route_backward", "_moe_balance_loss_backward",
                           "_moe_z_loss_backward", "_moe_combine_backward"})
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  m.impl("moe_plan", torch::CppFunction::makeFallthrough());  // integers have no gradient
  m.impl("moe_update_bias_", refuses_gradients());
}

TORCH_LIBRARY_IMPL(fulgurite, ADInplaceOrView, m) {
  m.impl("moe_update_bias_", fulgurite::bumps_versions());
}
