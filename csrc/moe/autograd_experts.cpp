// Gradients of the experts and of the grouped product. Differentiating twice raises.
#include "common/autograd.h"
#include "moe/experts_args.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace fulgurite {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

bool requires_grad(const OptionalTensor& tensor) { return tensor && tensor->requires_grad(); }

void save_options(AutogradContext* ctx, const ExpertsArgs& args) {
  ctx->saved_data["activation"] = std::string(args.activation);
  ctx->saved_data["gated"] = args.gated;
  ctx->saved_data["interleaved"] = args.interleaved;
  ctx->saved_data["transposed"] = args.transposed;
  ctx->saved_data["alpha"] = args.alpha;
  ctx->saved_data["limit"] = args.limit;
}

struct ExpertsFunction : torch::autograd::Function<ExpertsFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weights,
                        const Tensor& w_in, const Tensor& w_out, const OptionalTensor& b_in,
                        const OptionalTensor& b_out, const ExpertsArgs& args) {
    at::AutoDispatchBelowADInplaceOrView below;
    Tensor y, hidden;
    if (args.save_hidden)
      std::tie(y, hidden) = args.call_saving();
    else
      y = args.call();
    ctx->save_for_backward({x, args.ids, weights, w_in, w_out, b_in.value_or(Tensor()),
                            b_out.value_or(Tensor()), hidden});
    save_options(ctx, args);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const OptionalTensor b_in = if_defined(saved[5]), b_out = if_defined(saved[6]),
                         hidden = if_defined(saved[7]);
    const std::string activation = ctx->saved_data["activation"].toStringRef();
    const ExpertsArgs forward{saved[0],
                              saved[1],
                              saved[2],
                              saved[3],
                              saved[4],
                              b_in,
                              b_out,
                              activation,
                              ctx->saved_data["gated"].toBool(),
                              ctx->saved_data["interleaved"].toBool(),
                              ctx->saved_data["transposed"].toBool(),
                              ctx->saved_data["alpha"].toDouble(),
                              ctx->saved_data["limit"].toDouble(),
                              hidden.has_value()};
    // Edges are numbered over the tensors that were given.
    const size_t b_out_edge = b_in ? 5 : 4;
    const std::array<bool, 6> wanted{
        ctx->needs_input_grad(0),         ctx->needs_input_grad(1),
        ctx->needs_input_grad(2),         ctx->needs_input_grad(3),
        b_in && ctx->needs_input_grad(4), b_out && ctx->needs_input_grad(b_out_edge)};
    const auto [grad_x, grad_weights, grad_w_in, grad_w_out, grad_b_in, grad_b_out] =
        ExpertsBackwardArgs{grads[0], forward, hidden, wanted}.call();
    const auto given = [&](int i, const Tensor& grad) { return wanted[i] ? grad : Tensor(); };
    return {given(0, grad_x),
            given(1, grad_weights),
            given(2, grad_w_in),
            given(3, grad_w_out),
            given(4, grad_b_in),
            given(5, grad_b_out),
            Tensor()};
  }
};

Tensor experts_autograd(const ExpertsArgs& args) {
  const bool differentiable =
      at::GradMode::is_enabled() &&
      (args.x.requires_grad() || args.weights.requires_grad() || args.w_in.requires_grad() ||
       args.w_out.requires_grad() || requires_grad(args.b_in) || requires_grad(args.b_out));
  if (!differentiable) {
    at::AutoDispatchBelowADInplaceOrView below;
    return args.call();
  }
  return ExpertsFunction::apply(args.x, args.weights, args.w_in, args.w_out, args.b_in, args.b_out,
                                args);
}

struct GroupedMmFunction : torch::autograd::Function<GroupedMmFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight,
                        const OptionalTensor& bias, const GroupedMmArgs& args) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({x, weight, args.offsets});
    ctx->saved_data["transposed"] = args.transposed;
    ctx->saved_data["bias"] = bias.has_value();
    return args.call();
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const std::array<bool, 3> wanted{ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                     ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2)};
    const auto [grad_x, grad_weight, grad_bias] =
        GroupedMmBackwardArgs{
            grads[0], saved[0], saved[1], saved[2], ctx->saved_data["transposed"].toBool(), wanted}
            .call();
    return {wanted[0] ? grad_x : Tensor(), wanted[1] ? grad_weight : Tensor(),
            wanted[2] ? grad_bias : Tensor(), Tensor()};
  }
};

Tensor grouped_mm_autograd(const GroupedMmArgs& args) {
  return GroupedMmFunction::apply(args.x, args.weight, args.bias, args);
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, Autograd, m) {
  using namespace fulgurite;
  m.impl("moe_experts", experts_from_schema<experts_autograd>);
  m.impl("moe_grouped_mm", grouped_mm_from_schema<grouped_mm_autograd>);
  for (const char* name :
       {"_moe_experts_forward", "_moe_experts_backward", "_moe_grouped_mm_backward"})
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
}
