// What can be differentiated of the second derivatives: _attention_double_backward is linear in the gradients h that come in for
// dQ … dsink, and the derivative by h is made of operators that exist. With F = Σ dO∘O + Σ g_lse·lse and x the inputs of
// attention, the operator gives
//
//   of dO  ∂O/∂x·h     of g_lse  ∂lse/∂x·h     of x  ∇²F·h
//
// and for v that comes in for these, ∇²F being symmetric,
//
//   of h   ∇(Σ v_dO∘O + Σ v_lse·lse) + ∇²F·v_x          a backward, and a double backward with v_x as its h
//
// That is what Hessian-vector products by differentiating twice (torch.autograd.functional.hvp, jvp) need. By anything else it
// would be a third derivative, which is not offered.
#include "attention/double_backward.h"
#include "attention/saved_scores.h"
#include "common/check.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace fulgurite {
namespace {

struct AttentionDoubleBackwardFunction
    : torch::autograd::Function<AttentionDoubleBackwardFunction> {
  using Context = torch::autograd::AutogradContext;
  using List = torch::autograd::variable_list;
  static constexpr int kInputs = kAttentionInputs + kDoubleBackwardInputs;  // h, then the rest

  static List forward(Context* ctx, const OptionalTensor& gg_query, const OptionalTensor& gg_key,
                      const OptionalTensor& gg_value, const OptionalTensor& gg_bias,
                      const OptionalTensor& gg_sink, const OptionalTensor& grad_out,
                      const OptionalTensor& grad_lse, const Tensor& query, const Tensor& key,
                      const Tensor& value, const OptionalTensor& bias, const OptionalTensor& sink,
                      const AttentionDoubleBackwardArgs& args, bool recorded) {
    at::AutoDispatchBelowADInplaceOrView below;
    const AttentionDoubleGradients results = args.call();
    if (recorded) {
      List saved{grad_out.value_or(Tensor()), grad_lse.value_or(Tensor()), query, key, value};
      save_scores(ctx, args.scores, bias, sink, saved);
      ctx->save_for_backward(saved);
      std::array<bool, kAttentionInputs> given;
      for (int i = 0; i < kAttentionInputs; ++i) given[i] = args.grads[i].has_value();
      ctx->saved_data["given"] = given;
      ctx->saved_data["output_mask"] = args.output_mask;
      ctx->set_materialize_grads(false);
    }
    return std::apply([](const auto&... tensors) { return List{tensors...}; }, results);
  }

  static List backward(Context* ctx, List grads) {
    const List saved = ctx->get_saved_variables();
    const ScoreArgs scores = saved_scores(ctx, saved, 5);
    AttentionDoubleBackwardArgs second{
        {}, if_defined(saved[0]), if_defined(saved[1]), saved[2], saved[3], saved[4], scores, {}};
    const std::array<bool, kAttentionInputs> wanted = wanted_gradients(ctx, second);
    const c10::List<bool> computed = ctx->saved_data["output_mask"].toBoolList();
    const auto incoming = [&](int result) {
      return computed[result] ? if_defined(grads[result]) : OptionalTensor();
    };

    List sums(kInputs + 2);
    if (const OptionalTensor v_out = incoming(kOfGradOut), v_lse = incoming(kOfGradLse);
        v_out || v_lse) {
      const auto [out, lse] = AttentionArgs{saved[2], saved[3], saved[4], scores}.call();
      add(sums, wanted,
          AttentionBackwardArgs{v_out, v_lse, saved[2], saved[3], saved[4], out, lse, scores,
                                wanted}
              .call());
    }
    bool any = false;
    for (int i = 0; i < kAttentionInputs; ++i) {
      second.grads[i] = incoming(kOfQuery + i);
      second.output_mask[kOfQuery + i] = wanted[i];
      any |= second.grads[i].has_value();
    }
    if (any)
      std::apply(
          [&](const Tensor&, const Tensor&, const auto&... of_inputs) {
            add(sums, wanted, AttentionGradients(of_inputs...));
          },
          second.call());
    return sums;
  }

 private:
  /// Which of h's gradients are asked for. Edges are numbered over the tensors that were given.
  static std::array<bool, kAttentionInputs> wanted_gradients(
      Context* ctx, const AttentionDoubleBackwardArgs& args) {
    constexpr const char* op = "_attention_double_backward";
    constexpr const char* names[kDoubleBackwardInputs] = {"grad_out", "grad_lse", "query", "key",
                                                          "value",    "bias",     "sink"};
    std::array<bool, kAttentionInputs> wanted{};
    const c10::List<bool> given = ctx->saved_data["given"].toBoolList();
    size_t edge = 0;
    for (int i = 0; i < kAttentionInputs; ++i)
      wanted[i] = given[i] && ctx->needs_input_grad(edge++);
    for (int i = 0; i < kDoubleBackwardInputs; ++i)
      FULGURITE_CHECK_SERVED(!args.input(i) || !ctx->needs_input_grad(edge++),
                             "the derivative for fulgurite::_attention_double_backward by ",
                             names[i],
                             ", a third derivative of attention, is not implemented; second "
                             "derivatives and Hessian-vector products are");
    return wanted;
  }

  static void add(List& sums, const std::array<bool, kAttentionInputs>& wanted,
                  const AttentionGradients& gradients) {
    const List all = std::apply([](const auto&... tensors) { return List{tensors...}; }, gradients);
    for (int i = 0; i < kAttentionInputs; ++i)
      if (wanted[i]) sums[i] = sums[i].defined() ? sums[i] + all[i] : all[i];
  }
};

AttentionDoubleGradients attention_double_backward_autograd(
    const AttentionDoubleBackwardArgs& args) {
  const auto results = AttentionDoubleBackwardFunction::apply(
      args.grads[kQuery], args.grads[kKey], args.grads[kValue], args.grads[kBias],
      args.grads[kSink], args.grad_out, args.grad_lse, args.query, args.key, args.value,
      args.scores.bias, args.scores.sink, args, at::GradMode::is_enabled());
  return {results[0], results[1], results[2], results[3], results[4], results[5], results[6]};
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, Autograd, m) {
  using namespace fulgurite;
  m.impl("_attention_double_backward",
         attention_double_backward_from_schema<attention_double_backward_autograd>);
}
