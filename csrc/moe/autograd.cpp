// Gradients. The backward operators have none of their own: differentiating twice raises. The
// exception is permute, whose gradient is moe_combine. Those of the experts: autograd_experts.cpp.
#include "common/autograd.h"
#include "common/mutation.h"
#include "moe/args.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace fulgurite {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// ---- routing

struct RouteFunction : torch::autograd::Function<RouteFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& logits, const RouteArgs& args) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [weights, ids, counts] = args.call();
    ctx->save_for_backward({logits, ids});
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
    const std::string score = ctx->saved_data["score"].toStringRef();
    const BelowAutogradUnlessRecorded below;
    const RouteBackwardArgs args{grads[0],
                                 saved[0],
                                 saved[1],
                                 score,
                                 ctx->saved_data["renormalize"].toBool(),
                                 ctx->saved_data["eps"].toDouble(),
                                 ctx->saved_data["scale"].toDouble(),
                                 {true}};
    return {args.call(), Tensor()};
  }
};

RouteResult route_autograd(const RouteArgs& args) {
  if (!at::GradMode::is_enabled() || !args.logits.requires_grad()) {
    at::AutoDispatchBelowADInplaceOrView below;
    return args.call();
  }
  const variable_list results = RouteFunction::apply(args.logits, args);
  return {results[0], results[1], results[2]};
}

// ---- losses

struct BalanceFunction : torch::autograd::Function<BalanceFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& logits, const BalanceArgs& args) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({logits, args.ids, args.sequence_ids.value_or(Tensor()),
                            args.token_mask.value_or(Tensor())});
    ctx->saved_data["score"] = std::string(args.score);
    ctx->saved_data["kind"] = std::string(args.kind);
    ctx->saved_data["eps"] = args.eps;
    return args.call();
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const std::string score = ctx->saved_data["score"].toStringRef(),
                      kind = ctx->saved_data["kind"].toStringRef();
    const BalanceArgs args{saved[0],
                           saved[1],
                           score,
                           kind,
                           if_defined(saved[2]),
                           if_defined(saved[3]),
                           ctx->saved_data["eps"].toDouble()};
    return {args.call_backward(grads[0]), Tensor()};
  }
};

Tensor balance_autograd(const BalanceArgs& args) {
  return BalanceFunction::apply(args.logits, args);
}

struct ZLossFunction : torch::autograd::Function<ZLossFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& logits,
                        const OptionalTensor& token_mask) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({logits, token_mask.value_or(Tensor())});
    return call_z_loss(logits, token_mask);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    return {call_z_loss_backward(grads[0], saved[0], if_defined(saved[1])), Tensor()};
  }
};

Tensor z_loss_autograd(const Tensor& logits, const OptionalTensor& token_mask) {
  return ZLossFunction::apply(logits, token_mask);
}

// ---- permute, combine

struct PermuteFunction : torch::autograd::Function<PermuteFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& permutation,
                        const Tensor& inverse) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({inverse});
    return call_permute(x, permutation, inverse);
  }

  /// Every token adds up what its copies received.
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    return {call_combine(grads[0], ctx->get_saved_variables()[0], std::nullopt), Tensor(),
            Tensor()};
  }
};

Tensor permute_autograd(const Tensor& x, const Tensor& permutation, const Tensor& inverse) {
  return PermuteFunction::apply(x, permutation, inverse);
}

struct CombineFunction : torch::autograd::Function<CombineFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& y, const Tensor& inverse,
                        const OptionalTensor& weights) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({y, inverse, weights.value_or(Tensor())});
    return call_combine(y, inverse, weights);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const OptionalTensor weights = if_defined(saved[2]);
    const std::array<bool, 2> wanted{ctx->needs_input_grad(0),
                                     weights.has_value() && ctx->needs_input_grad(2)};
    const auto [grad_y, grad_weights] =
        call_combine_backward(grads[0], saved[0], saved[1], weights, wanted);
    return {wanted[0] ? grad_y : Tensor(), Tensor(), wanted[1] ? grad_weights : Tensor()};
  }
};

Tensor combine_autograd(const Tensor& y, const Tensor& inverse, const OptionalTensor& weights) {
  return CombineFunction::apply(y, inverse, weights);
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, Autograd, m) {
  using namespace fulgurite;
  m.impl("moe_route", route_from_schema<route_autograd>);
  m.impl("moe_balance_loss", balance_from_schema<balance_autograd>);
  m.impl("moe_z_loss", z_loss_autograd);
  m.impl("moe_permute", permute_autograd);
  m.impl("moe_combine", combine_autograd);
  for (const char* name : {"_moe_route_backward", "_moe_balance_loss_backward",
                           "_moe_z_loss_backward", "_moe_combine_backward"})
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  m.impl("moe_plan", torch::CppFunction::makeFallthrough());  // integers have no gradient
  m.impl("moe_update_bias_", refuses_gradients());
}

TORCH_LIBRARY_IMPL(fulgurite, ADInplaceOrView, m) {
  m.impl("moe_update_bias_", fulgurite::bumps_versions());
}
