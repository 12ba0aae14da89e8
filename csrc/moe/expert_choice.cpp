// Expert choice: schema, checks, Meta, gradients, autocast and the C++ function.
#include "moe/expert_choice.h"

#include "common/autocast.h"
#include "common/check.h"
#include "common/fresh.h"
#include "fulgurite/moe.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace fulgurite {

ExpertChoiceResult call_expert_choice(const Tensor& logits, const c10::SymInt& capacity) {
  static const auto op =
      op_handle<ExpertChoiceResult(const Tensor&, c10::SymInt)>("moe_route_expert_choice");
  return op.call(logits, capacity);
}

void check_expert_choice(const Tensor& logits, const c10::SymInt& capacity) {
  constexpr const char* op = "moe_route_expert_choice";
  check_float(op, "logits", logits);
  check_dim(op, "logits", logits, 2, "[T, E]");
  check_place(op, "logits", logits, logits);
  FULGURITE_CHECK_VALUE(capacity >= 0 && capacity <= logits.sym_size(0),
                        "expected capacity in [0, ", logits.sym_size(0), "], got ", capacity);
}

void check_expert_choice_backward(const Tensor& grad_weights, const Tensor& logits,
                                  const Tensor& token_ids) {
  constexpr const char* op = "_moe_route_expert_choice_backward";
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

ExpertChoiceResult expert_choice_meta(const Tensor& logits, c10::SymInt capacity) {
  check_expert_choice(logits, capacity);
  const c10::SymDimVector shape{logits.sym_size(1), capacity};  // (E,C)
  const auto options = logits.options();
  return {at::empty_symint(shape, options.dtype(accumulate_type(logits.scalar_type()))),
          at::empty_symint(shape, options.dtype(at::kInt))};
}

Tensor expert_choice_backward_meta(const Tensor& grad_weights, const Tensor& logits,
                                   const Tensor& token_ids, std::array<bool, 1> output_mask) {
  check_expert_choice_backward(grad_weights, logits, token_ids);
  return fresh_gradient(output_mask[0], logits);
}

struct ExpertChoiceFunction : torch::autograd::Function<ExpertChoiceFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& logits,
                               const c10::SymInt& capacity) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [weights, token_ids] = call_expert_choice(logits, capacity);
    ctx->save_for_backward({logits, token_ids});
    ctx->mark_non_differentiable({token_ids});
    ctx->set_materialize_grads(false);
    return {weights, token_ids};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined() || !ctx->needs_input_grad(0)) return variable_list(2);
    static const auto op =
        op_handle<Tensor(const Tensor&, const Tensor&, const Tensor&, std::array<bool, 1>)>(
            "_moe_route_expert_choice_backward");
    const variable_list saved = ctx->get_saved_variables();
    return {op.call(grads[0], saved[0], saved[1], {true}), Tensor()};
  }
};

ExpertChoiceResult expert_choice_autograd(const Tensor& logits, c10::SymInt capacity) {
  const variable_list results = ExpertChoiceFunction::apply(logits, capacity);
  return {results[0], results[1]};
}

ExpertChoiceResult expert_choice_autocast(const Tensor& logits, c10::SymInt capacity) {
  const AutocastTo float32(logits.device().type(), at::kFloat);
  return call_expert_choice(float32(logits), capacity);
}

}  // namespace

std::tuple<Tensor, Tensor> moe_route_expert_choice(const Tensor& logits, int64_t capacity) {
  return call_expert_choice(logits, capacity);
}

}  // namespace fulgurite

TORCH_LIBRARY_FRAGMENT(fulgurite, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def(
      "moe_route_expert_choice(Tensor logits, SymInt capacity) -> (Tensor weights, Tensor "
      "token_ids)",
      tags);
  m.def(
      "_moe_route_expert_choice_backward(Tensor grad_weights, Tensor logits, Tensor token_ids, *, "
      "bool[1] output_mask) -> Tensor",
      tags);
}

TORCH_LIBRARY_IMPL(fulgurite, Meta, m) {
  m.impl("moe_route_expert_choice", fulgurite::expert_choice_meta);
  m.impl("_moe_route_expert_choice_backward", fulgurite::expert_choice_backward_meta);
}

TORCH_LIBRARY_IMPL(fulgurite, Autograd, m) {
  m.impl("moe_route_expert_choice", fulgurite::expert_choice_autograd);
  m.impl("_moe_route_expert_choice_backward", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(fulgurite, AutocastCPU, m) {
  m.impl("moe_route_expert_choice", fulgurite::expert_choice_autocast);
}

TORCH_LIBRARY_IMPL(fulgurite, AutocastCUDA, m) {
  m.impl("moe_route_expert_choice", fulgurite::expert_choice_autocast);
}
