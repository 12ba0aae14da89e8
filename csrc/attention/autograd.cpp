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

OptionalTensor if_defined(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

void save_scores(AutogradContext* ctx, const ScoreArgs& s) {
  auto& saved = ctx->saved_data;
  saved["block_size"] = s.block_size;
  saved["scale"] = s.scale;
  saved["causal"] = s.causal;
  saved["align"] = std::string(s.align);
  saved["window_left"] = s.window_left;
  saved["window_right"] = s.window_right;
  saved["sink_tokens"] = s.sink_tokens;
  saved["chunk_size"] = s.chunk_size;
  saved["softcap"] = s.softcap;
  saved["score"] = std::string(s.score);
  saved["score_scale"] = s.score_scale;
  saved["dropout_p"] = s.dropout_p;
}

/// The saved arguments again; tensors are bias, mask, sink, alibi_slopes, block_layout, philox from `first` on.
ScoreArgs saved_scores(AutogradContext* ctx, const variable_list& tensors, size_t first) {
  auto& saved = ctx->saved_data;
  return {if_defined(tensors[first]),          if_defined(tensors[first + 1]),
          if_defined(tensors[first + 2]),      if_defined(tensors[first + 3]),
          if_defined(tensors[first + 4]),      saved["block_size"].toInt(),
          saved["scale"].toOptional<double>(), saved["causal"].toBool(),
          saved["align"].toStringRef(),        saved["window_left"].toInt(),
          saved["window_right"].toInt(),       saved["sink_tokens"].toInt(),
          saved["chunk_size"].toInt(),         saved["softcap"].toDouble(),
          saved["score"].toStringRef(),        saved["score_scale"].toDouble(),
          saved["dropout_p"].toDouble(),       if_defined(tensors[first + 5])};
}

struct AttentionFunction : torch::autograd::Function<AttentionFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& query, const Tensor& key,
                               const Tensor& value, const OptionalTensor& bias,
                               const OptionalTensor& sink, const AttentionArgs& args) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [out, lse] = args.call();
    const ScoreArgs& s = args.scores;
    const auto or_undefined = [](const OptionalTensor& t) { return t.value_or(Tensor()); };
    ctx->save_for_backward({query, key, value, out, lse, or_undefined(bias), or_undefined(s.mask),
                            or_undefined(sink), or_undefined(s.alibi_slopes),
                            or_undefined(s.block_layout), or_undefined(s.philox)});
    save_scores(ctx, s);
    ctx->set_materialize_grads(false);
    if (s.score != "softmax") ctx->mark_non_differentiable({lse});
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
  constexpr const char* op = "attention";
  const OptionalTensor& slopes = args.scores.alibi_slopes;
  FULGURITE_CHECK_SERVED(!slopes || !slopes->requires_grad() || !at::GradMode::is_enabled(),
                         "the gradient of alibi_slopes is not supported; pass them detached");
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
