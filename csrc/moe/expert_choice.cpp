// Expert choice: schema, checks, Meta, gradients and autocast.
#include "moe/expert_choice.h"

#include "common/autocast.h"
#include "common/check.h"
#include "common/define.h"
#include "common/fresh.h"
#include "common/saved_arguments.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

namespace fulgurite {

void check_expert_choice(const ExpertChoiceArgs& args) {
  constexpr const char* op = "moe_route_expert_choice";
  const auto& [logits, capacity] = args;
  check_float(op, "logits", logits);
  check_dim(op, "logits", logits, 2, "[T, E]");
  check_place(op, "logits", logits, logits);
  FULGURITE_CHECK_VALUE(holds(capacity.sym_ge(0).sym_and(capacity.sym_le(logits.sym_size(0)))),
                        "expected capacity in [0, ", logits.sym_size(0), "], got ", capacity);
}

void check_expert_choice_backward(const ExpertChoiceBackwardArgs& args) {
  constexpr const char* op = "_moe_route_expert_choice_backward";
  const auto& [grad_weights, logits, token_ids, output_mask] = args;
  check_float(op, "logits", logits);
  const at::ScalarType accumulate = accumulate_type(logits.scalar_type());
  FULGURITE_CHECK_TYPE(grad_weights.scalar_type() == accumulate, "expected grad_weights of dtype ",
                       accumulate, ", got ", grad_weights.scalar_type());
  FULGURITE_CHECK_TYPE(token_ids.scalar_type() == at::kInt,
                       "expected token_ids of dtype int32, got ", token_ids.scalar_type());
  check_dim(op, "logits", logits, 2, "[T, E]");
  check_dim(op, "token_ids", token_ids, 2, "[E, C]");
  check_place(op, "logits", logits, logits);
  check_sizes(op, "token_ids", token_ids,
              c10::SymDimVector{logits.sym_size(1), token_ids.sym_size(1)});
  check_place(op, "token_ids", token_ids, logits);
  check_sizes(op, "grad_weights", grad_weights, token_ids.sym_sizes());
  check_place(op, "grad_weights", grad_weights, logits);
}

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

ExpertChoiceResult expert_choice_meta(const ExpertChoiceArgs& args) {
  check_expert_choice(args);
  const c10::SymDimVector shape{args.logits.sym_size(1), args.capacity};  // (E,C)
  const auto options = args.logits.options();
  return {at::empty_symint(shape, options.dtype(accumulate_type(args.logits.scalar_type()))),
          at::empty_symint(shape, options.dtype(at::kInt))};
}

Tensor expert_choice_backward_meta(const ExpertChoiceBackwardArgs& args) {
  check_expert_choice_backward(args);
  return fresh_gradient(args.output_mask[0], args.logits);
}

struct ExpertChoiceFunction : torch::autograd::Function<ExpertChoiceFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& logits,
                               const ExpertChoiceArgs& args) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [weights, token_ids] = call(args);
    ctx->save_for_backward({logits, saved_output(token_ids)});
    ctx->mark_non_differentiable({token_ids});
    ctx->set_materialize_grads(false);
    return {weights, token_ids};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined() || !ctx->needs_input_grad(0)) return variable_list(2);
    const variable_list saved = ctx->get_saved_variables();
    return {call(ExpertChoiceBackwardArgs{grads[0], saved[0], saved[1], {true}}), Tensor()};
  }
};

ExpertChoiceResult expert_choice_autograd(const ExpertChoiceArgs& args) {
  const variable_list results = apply<ExpertChoiceFunction>(args);
  return {results[0], results[1]};
}

ExpertChoiceResult expert_choice_autocast(const ExpertChoiceArgs& args) {
  const AutocastTo float32(args.logits.device().type(), at::kFloat);
  return call(ExpertChoiceArgs{float32(args.logits), args.capacity});
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_FRAGMENT(fulgurite, m) {
  fulgurite::define(
      m,
      "moe_route_expert_choice(Tensor logits, SymInt capacity) -> (Tensor weights, Tensor "
      "token_ids)");
  fulgurite::define(
      m,
      "_moe_route_expert_choice_backward(Tensor grad_weights, Tensor logits, Tensor token_ids, *, "
      "bool[1] output_mask) -> Tensor");
}

TORCH_LIBRARY_IMPL(fulgurite, Meta, m) {
  fulgurite::implement<fulgurite::expert_choice_meta>(m);
  fulgurite::implement<fulgurite::expert_choice_backward_meta>(m);
}

TORCH_LIBRARY_IMPL(fulgurite, Autograd, m) {
  fulgurite::implement<fulgurite::expert_choice_autograd>(m);
  m.impl("_moe_route_expert_choice_backward", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(fulgurite, AutocastCPU, m) {
  fulgurite::implement<fulgurite::expert_choice_autocast>(m);
}

TORCH_LIBRARY_IMPL(fulgurite, AutocastCUDA, m) {
  fulgurite::implement<fulgurite::expert_choice_autocast>(m);
}
