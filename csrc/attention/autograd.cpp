// Gradients. attention can be differentiated twice: _attention_backward has a function of its own, whose backward is
// _attention_double_backward (double_backward_autograd.cpp).
#include "attention/double_backward.h"
#include "attention/slopes.h"
#include "common/saved_arguments.h"

#include <torch/library.h>

namespace fulgurite {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct AttentionFunction : torch::autograd::Function<AttentionFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& query, const Tensor& key,
                               const Tensor& value, const OptionalTensor& bias,
                               const OptionalTensor& sink, const AttentionArgs& args) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [out, lse] = call(args);
    variable_list saved{saved_output(out), saved_output(lse)};
    save(ctx, args, saved);
    ctx->save_for_backward(saved);
    ctx->set_materialize_grads(false);
    if (args.scores.score != "softmax") ctx->mark_non_differentiable({lse});
    return {out, lse};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined() && !grads[1].defined())
      return variable_list(kInputs<AttentionArgs> + 1);
    const variable_list saved = ctx->get_saved_variables();
    const auto forward = saved_arguments<AttentionArgs>(ctx, saved, 2);
    const auto wanted = wanted_inputs(ctx, forward);
    const BelowAutogradUnlessRecorded below(grads);
    return gradient_list(call(AttentionBackwardArgs{if_defined(grads[0]), if_defined(grads[1]),
                                                    forward.query, forward.key, forward.value,
                                                    saved[0], saved[1], forward.scores, wanted}),
                         wanted);
  }
};

AttentionResult attention_autograd(const AttentionArgs& args) {
  check_slopes_need_no_gradient("attention", args.scores.alibi_slopes);
  const variable_list results = apply<AttentionFunction>(args);
  return {results[0], results[1]};
}

/// out and lse are functions of the other inputs, and so the gradients that reach those are the whole ones.
struct AttentionBackwardFunction : torch::autograd::Function<AttentionBackwardFunction> {
  static variable_list forward(AutogradContext* ctx, const OptionalTensor& grad_out,
                               const OptionalTensor& grad_lse, const Tensor& query,
                               const Tensor& key, const Tensor& value, const OptionalTensor& bias,
                               const OptionalTensor& sink, const AttentionBackwardArgs& args) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [grad_query, grad_key, grad_value, grad_bias, grad_sink] = call(args);
    variable_list saved;
    save(ctx, args, saved);
    ctx->save_for_backward(saved);
    ctx->set_materialize_grads(false);
    return {grad_query, grad_key, grad_value, grad_bias, grad_sink};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto first = saved_arguments<AttentionBackwardArgs>(ctx, ctx->get_saved_variables(), 0);
    AttentionDoubleBackwardArgs args{{},        first.grad_out, first.grad_lse, first.query,
                                     first.key, first.value,    first.scores,   {}};
    bool any = false;
    for (int i = 0; i < kAttentionInputs; ++i) {
      if (first.output_mask[i]) args.grads[i] = if_defined(grads[i]);
      any |= args.grads[i].has_value();
    }
    if (!any) return variable_list(kInputs<AttentionBackwardArgs> + 1);
    args.output_mask = wanted_inputs(ctx, first);
    return gradient_list(call(args), args.output_mask);
  }
};

AttentionGradients attention_backward_autograd(const AttentionBackwardArgs& args) {
  check_slopes_need_no_gradient("_attention_backward", args.scores.alibi_slopes);
  const variable_list results = apply<AttentionBackwardFunction>(args);
  return {results[0], results[1], results[2], results[3], results[4]};
}

struct RopeFunction : torch::autograd::Function<RopeFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const RopeArgs& args) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({savable(args.cos), savable(args.sin)});
    ctx->saved_data["interleaved"] = args.interleaved;
    ctx->saved_data["conjugate"] = args.conjugate;
    return call(args);
  }

  /// A rotation's transpose rotates back.
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    return {call(RopeArgs{grads[0], saved[0], saved[1], ctx->saved_data["interleaved"].toBool(),
                          !ctx->saved_data["conjugate"].toBool()}),
            Tensor()};
  }
};

Tensor rope_autograd(const RopeArgs& args) {
  constexpr const char* op = "rope";
  FULGURITE_CHECK_SERVED(
      !at::GradMode::is_enabled() || !(args.cos.requires_grad() || args.sin.requires_grad()),
      "the gradient of cos and sin is not supported; pass them detached");
  return apply<RopeFunction>(args);
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, Autograd, m) {
  using namespace fulgurite;
  implement<attention_autograd>(m);
  implement<attention_backward_autograd>(m);
  implement<rope_autograd>(m);
}
