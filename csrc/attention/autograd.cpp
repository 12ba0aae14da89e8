// Gradients. The backward operators have none of their own: differentiating twice raises.
#include "attention/check.h"
#include "common/check.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace fulgurite {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

OptionalTensor if_defined(const Tensor& tensor) { return tensor.defined() ? OptionalTensor(tensor) : std::nullopt; }

struct AttentionFunction : torch::autograd::Function<AttentionFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& query, const Tensor& key, const Tensor& value, const AttentionArgs& args) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [out, lse] = args.call();
    ctx->save_for_backward({query, key, value, out, lse, args.mask.value_or(Tensor())});
    ctx->saved_data["scale"] = attention_scale(args);
    ctx->saved_data["causal"] = args.causal;
    ctx->saved_data["align"] = std::string(args.align);
    ctx->saved_data["window_left"] = args.window_left;
    ctx->saved_data["window_right"] = args.window_right;
    ctx->set_materialize_grads(false);
    return {out, lse};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const std::string align = ctx->saved_data["align"].toStringRef();
    const AttentionBackwardArgs args{if_defined(grads[0]),
                                     if_defined(grads[1]),
                                     saved[0],
                                     saved[1],
                                     saved[2],
                                     saved[3],
                                     saved[4],
                                     if_defined(saved[5]),
                                     ctx->saved_data["scale"].toDouble(),
                                     ctx->saved_data["causal"].toBool(),
                                     align,
                                     ctx->saved_data["window_left"].toInt(),
                                     ctx->saved_data["window_right"].toInt(),
                                     {ctx->needs_input_grad(0), ctx->needs_input_grad(1), ctx->needs_input_grad(2)}};
    if (!args.grad_out && !args.grad_lse) return variable_list(4);
    const auto [grad_query, grad_key, grad_value] = args.call();
    const auto wanted = [&](int i, const Tensor& grad) { return args.output_mask[i] ? grad : Tensor(); };
    return {wanted(0, grad_query), wanted(1, grad_key), wanted(2, grad_value), Tensor()};
  }
};

AttentionResult attention_autograd(const AttentionArgs& args) {
  const variable_list results = AttentionFunction::apply(args.query, args.key, args.value, args);
  return {results[0], results[1]};
}

struct RopeFunction : torch::autograd::Function<RopeFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved, bool conjugate) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({cos, sin});
    ctx->saved_data["interleaved"] = interleaved;
    ctx->saved_data["conjugate"] = conjugate;
    return call_rope(x, cos, sin, interleaved, conjugate);
  }

  /// A rotation's transpose rotates back.
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    return {call_rope(grads[0], saved[0], saved[1], ctx->saved_data["interleaved"].toBool(), !ctx->saved_data["conjugate"].toBool()), Tensor(),
            Tensor(), Tensor(), Tensor()};
  }
};

Tensor rope_autograd(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved, bool conjugate) {
  constexpr const char* op = "rope";
  FULGURITE_CHECK_SERVED(!at::GradMode::is_enabled() || !(cos.requires_grad() || sin.requires_grad()),
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
