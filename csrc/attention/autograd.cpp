// Gradients. The backward operators have none of their own: differentiating twice raises.
#include "attention/check.h"
#include "attention/saved_scores.h"
#include "common/check.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
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
  m.impl("_attention_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("rope", rope_autograd);
}
