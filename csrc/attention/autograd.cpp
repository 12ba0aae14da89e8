// Gradients. attention can be differentiated twice: _attention_backward has a function of its own, whose backward is
// _attention_double_backward (double_backward_autograd.cpp).
#include "attention/double_backward.h"
#include "attention/saved_scores.h"
#include "common/check.h"

#include <torch/csrc/autograd/custom_function.h>
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
    const auto [out, lse] = args.call();
    variable_list saved{query, key, value, out, lse};
    save_scores(ctx, args.scores, bias, sink, saved);
    ctx->save_for_backward(saved);
    ctx->set_materialize_grads(false);
    if (args.scores.score != "softmax") ctx->mark_non_differentiable({lse});
    return {out, lse};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined() && !grads[1].defined()) return variable_list(6);
    const variable_list saved = ctx->get_saved_variables();
    const ScoreArgs scores = saved_scores(ctx, saved, 5);
    // Edges are numbered over the tensors that were given.
    const size_t sink_edge = scores.bias ? 4 : 3;
    const AttentionBackwardArgs args{
        if_defined(grads[0]),
        if_defined(grads[1]),
        saved[0],
        saved[1],
        saved[2],
        saved[3],
        saved[4],
        scores,
        {ctx->needs_input_grad(0), ctx->needs_input_grad(1), ctx->needs_input_grad(2),
         scores.bias && ctx->needs_input_grad(3), scores.sink && ctx->needs_input_grad(sink_edge)}};
    const auto [grad_query, grad_key, grad_value, grad_bias, grad_sink] = args.call();
    const auto wanted = [&](AttentionInput input, const Tensor& grad) {
      return args.output_mask[input] ? grad : Tensor();
    };
    return {wanted(kQuery, grad_query), wanted(kKey, grad_key),   wanted(kValue, grad_value),
            wanted(kBias, grad_bias),   wanted(kSink, grad_sink), Tensor()};
  }
};

AttentionResult attention_autograd(const AttentionArgs& args) {
  check_slopes_need_no_gradient("attention", args.scores.alibi_slopes);
  const variable_list results = AttentionFunction::apply(args.query, args.key, args.value,
                                                         args.scores.bias, args.scores.sink, args);
  return {results[0], results[1]};
}

/// out and lse are functions of the other inputs, and so the gradients that reach those are the whole ones.
struct AttentionBackwardFunction : torch::autograd::Function<AttentionBackwardFunction> {
  static variable_list forward(AutogradContext* ctx, const OptionalTensor& grad_out,
                               const OptionalTensor& grad_lse, const Tensor& query,
                               const Tensor& key, const Tensor& value, const OptionalTensor& bias,
                               const OptionalTensor& sink, const AttentionBackwardArgs& args,
                               bool recorded) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [grad_query, grad_key, grad_value, grad_bias, grad_sink] = args.call();
    if (recorded) {
      variable_list saved{grad_out.value_or(Tensor()), grad_lse.value_or(Tensor()), query, key,
                          value};
      save_scores(ctx, args.scores, bias, sink, saved);
      ctx->save_for_backward(saved);
      ctx->saved_data["output_mask"] = args.output_mask;
      ctx->set_materialize_grads(false);
    }
    return {grad_query, grad_key, grad_value, grad_bias, grad_sink};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    AttentionDoubleBackwardArgs args{{},
                                     if_defined(saved[0]),
                                     if_defined(saved[1]),
                                     saved[2],
                                     saved[3],
                                     saved[4],
                                     saved_scores(ctx, saved, 5),
                                     {}};
    const c10::List<bool> computed = ctx->saved_data["output_mask"].toBoolList();
    bool any = false;
    for (int i = 0; i < kAttentionInputs; ++i) {
      if (computed[i]) args.grads[i] = if_defined(grads[i]);
      any |= args.grads[i].has_value();
    }
    if (!any) return variable_list(kDoubleBackwardInputs + 2);
    // Edges are numbered over the tensors that were given.
    size_t edge = 0;
    for (int i = 0; i < kDoubleBackwardInputs; ++i)
      args.output_mask[i] = args.input(i) && ctx->needs_input_grad(edge++);
    return as_list(args.call(), args.output_mask);
  }

 private:
  static variable_list as_list(const AttentionDoubleGradients& results,
                               const std::array<bool, kDoubleBackwardInputs>& wanted) {
    variable_list list = std::apply(
        [](const auto&... tensors) { return variable_list{tensors..., Tensor(), Tensor()}; },
        results);
    for (int i = 0; i < kDoubleBackwardInputs; ++i)
      if (!wanted[i]) list[i] = Tensor();
    return list;
  }
};

AttentionGradients attention_backward_autograd(const AttentionBackwardArgs& args) {
  check_slopes_need_no_gradient("_attention_backward", args.scores.alibi_slopes);
  const variable_list results = AttentionBackwardFunction::apply(
      args.grad_out, args.grad_lse, args.query, args.key, args.value, args.scores.bias,
      args.scores.sink, args, at::GradMode::is_enabled());
  return {results[0], results[1], results[2], results[3], results[4]};
}

struct RopeFunction : torch::autograd::Function<RopeFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& cos, const Tensor& sin,
                        bool interleaved, bool conjugate) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({cos, sin});
    ctx->saved_data["interleaved"] = interleaved;
    ctx->saved_data["conjugate"] = conjugate;
    return call_rope(x, cos, sin, interleaved, conjugate);
  }

  /// A rotation's transpose rotates back.
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    return {call_rope(grads[0], saved[0], saved[1], ctx->saved_data["interleaved"].toBool(),
                      !ctx->saved_data["conjugate"].toBool()),
            Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Tensor rope_autograd(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved,
                     bool conjugate) {
  constexpr const char* op = "rope";
  FULGURITE_CHECK_SERVED(
      !at::GradMode::is_enabled() || !(cos.requires_grad() || sin.requires_grad()),
      "the gradient of cos and sin is not supported; pass them detached");
  return RopeFunction::apply(x, cos, sin, interleaved, conjugate);
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, Autograd, m) {
  using namespace fulgurite;
  m.impl("attention", attention_from_schema<attention_autograd>);
  m.impl("_attention_backward", attention_backward_from_schema<attention_backward_autograd>);
  m.impl("rope", rope_autograd);
}
