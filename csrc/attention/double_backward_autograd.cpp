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
#include "common/check.h"
#include "common/saved_arguments.h"

#include <ATen/TensorOperators.h>
#include <torch/library.h>

namespace fulgurite {
namespace {

struct AttentionDoubleBackwardFunction
    : torch::autograd::Function<AttentionDoubleBackwardFunction> {
  using Context = torch::autograd::AutogradContext;
  using List = torch::autograd::variable_list;

  template <class... Input>
  static List forward(Context* ctx, const Input&... inputs_then_args) {
    const auto& args = std::get<sizeof...(Input) - 1>(std::tie(inputs_then_args...));
    at::AutoDispatchBelowADInplaceOrView below;
    const AttentionDoubleGradients results = call(args);
    List saved;
    save(ctx, args, saved);
    ctx->save_for_backward(saved);
    ctx->set_materialize_grads(false);
    return std::apply([](const auto&... tensors) { return List{tensors...}; }, results);
  }

  static List backward(Context* ctx, List grads) {
    const auto first =
        saved_arguments<AttentionDoubleBackwardArgs>(ctx, ctx->get_saved_variables(), 0);
    const std::array<bool, kAttentionInputs> wanted = wanted_gradients(ctx, first);
    const auto incoming = [&](int result) {
      return first.output_mask[result] ? if_defined(grads[result]) : OptionalTensor();
    };

    List sums(kInputs<AttentionDoubleBackwardArgs> + 1);
    if (const OptionalTensor v_out = incoming(kOfGradOut), v_lse = incoming(kOfGradLse);
        v_out || v_lse) {
      const auto [out, lse] =
          call(AttentionArgs{first.query, first.key, first.value, first.scores});
      add(sums, wanted,
          call(AttentionBackwardArgs{v_out, v_lse, first.query, first.key, first.value, out, lse,
                                     first.scores, wanted}));
    }
    AttentionDoubleBackwardArgs second = first;
    second.output_mask = {};
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
          call(second));
    return sums;
  }

 private:
  /// Which of h's gradients are asked for. Edges are numbered over the tensors that were given.
  static std::array<bool, kAttentionInputs> wanted_gradients(
      Context* ctx, const AttentionDoubleBackwardArgs& args) {
    constexpr const char* op = "_attention_double_backward";
    constexpr const char* names[kDoubleBackwardInputs] = {"grad_out", "grad_lse", "query", "key",
                                                          "value",    "bias",     "sink"};
    const auto all = wanted_inputs(ctx, args);
    std::array<bool, kAttentionInputs> wanted{};
    std::copy_n(all.begin(), kAttentionInputs, wanted.begin());
    for (int i = 0; i < kDoubleBackwardInputs; ++i)
      FULGURITE_CHECK_SERVED(!all[kAttentionInputs + i],
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
  const auto results = apply<AttentionDoubleBackwardFunction>(args);
  return {results[0], results[1], results[2], results[3], results[4], results[5], results[6]};
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, Autograd, m) {
  fulgurite::implement<fulgurite::attention_double_backward_autograd>(m);
}
