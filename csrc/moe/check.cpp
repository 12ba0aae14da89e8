#include "moe/check.h"

#include "common/check_choice.h"
#include "moe/check_parts.h"
#include "moe/rules/scores.h"

namespace fulgurite {
namespace {

void check_int32(const char* op, const char* name, const Tensor& tensor) {
  FULGURITE_CHECK_TYPE(tensor.scalar_type() == at::kInt, "expected ", name, " of dtype int32, got ",
                       tensor.scalar_type());
}

void check_mask_dtype(const char* op, const OptionalTensor& mask) {
  if (mask)
    FULGURITE_CHECK_TYPE(mask->scalar_type() == at::kBool,
                         "expected token_mask of dtype bool, got ", mask->scalar_type());
}

const RegisteredChoice routing_choices[] = {
    {"moe_route.score", kScores},        {"moe_route.group_score", kGroupScores},
    {"moe_balance_loss.score", kScores}, {"moe_balance_loss.kind", kBalanceKinds},
    {"moe_plan.drop", kDrops},           {"moe_update_bias_.rule", kBiasRules},
};

void check_route_values(const char* op, const RouteArgs& a, const RouteShape& s) {
  FULGURITE_CHECK_VALUE(a.k >= 1 && s.E >= a.k, "expected k in [1, ", s.E, "], got ", a.k);
  const Score score = check_choice(op, "score", kScores, a.score);
  FULGURITE_CHECK_VALUE(!a.bias || !is_softmax(score), "expected no bias with score '", a.score,
                        "'");
  check_choice(op, "group_score", kGroupScores, a.group_score);
  FULGURITE_CHECK_VALUE(a.n_group >= 1 && s.E % a.n_group == 0,
                        "expected n_group to divide E = ", s.E, ", got ", a.n_group);
  FULGURITE_CHECK_VALUE(a.topk_group >= 1 && a.topk_group <= a.n_group,
                        "expected topk_group in [1, ", a.n_group, "], got ", a.topk_group);
  FULGURITE_CHECK_VALUE(s.E / a.n_group * a.topk_group >= a.k,
                        "expected topk_group groups to hold at least k = ", a.k, " experts, got ",
                        s.E / a.n_group * a.topk_group);
  check_not_negative(op, "eps", a.eps);
  check_finite(op, "scale", a.scale);
}

/// dtypes and shapes of logits and ids.
RouteShape check_logits_ids(const char* op, const Tensor& logits, const Tensor& ids) {
  check_dim(op, "logits", logits, 2, "[T, E]");
  check_dim(op, "ids", ids, 2, "[T, K]");
  check_place(op, "logits", logits, logits);
  RouteShape s{logits.sym_size(0), logits.sym_size(1), ids.sym_size(1)};
  check_shape(op, "ids", ids, c10::SymDimVector{s.T, s.K}, logits);
  return s;
}

void check_scalar_grad(const char* op, const Tensor& grad, const Tensor& logits) {
  FULGURITE_CHECK_TYPE(grad.scalar_type() == accumulate_type(logits.scalar_type()),
                       "expected grad of dtype ", accumulate_type(logits.scalar_type()), ", got ",
                       grad.scalar_type());
  check_shape(op, "grad", grad, c10::SymDimVector{}, logits);
}

RouteShape check_balance_as(const char* op, const BalanceArgs& a) {
  check_float(op, "logits", a.logits);
  check_ids_dtype(op, "ids", a.ids);
  if (a.sequence_ids) check_ids_dtype(op, "sequence_ids", *a.sequence_ids);
  check_mask_dtype(op, a.token_mask);
  const RouteShape s = check_logits_ids(op, a.logits, a.ids);
  if (a.sequence_ids)
    check_shape(op, "sequence_ids", *a.sequence_ids, c10::SymDimVector{s.T}, a.logits);
  if (a.token_mask) check_shape(op, "token_mask", *a.token_mask, c10::SymDimVector{s.T}, a.logits);
  check_choice(op, "score", kScores, a.score);
  const BalanceKind kind = check_choice(op, "kind", kBalanceKinds, a.kind);
  FULGURITE_CHECK_VALUE((kind == BalanceKind::kSequence) == a.sequence_ids.has_value(),
                        "expected sequence_ids with kind 'sequence' and only there, got kind '",
                        a.kind, "'");
  check_not_negative(op, "eps", a.eps);
  return s;
}

}  // namespace

// ---- routing

RouteShape check_route(const RouteArgs& a) {
  constexpr const char* op = "moe_route";
  check_float(op, "logits", a.logits);
  if (a.bias) check_float(op, "bias", *a.bias);
  check_mask_dtype(op, a.token_mask);
  if (a.forced_ids) check_ids_dtype(op, "forced_ids", *a.forced_ids);
  check_dim(op, "logits", a.logits, 2, "[T, E]");
  check_place(op, "logits", a.logits, a.logits);
  const RouteShape s{a.logits.sym_size(0), a.logits.sym_size(1), a.k};
  if (a.bias) check_shape(op, "bias", *a.bias, c10::SymDimVector{s.E}, a.logits);
  if (a.token_mask) check_shape(op, "token_mask", *a.token_mask, c10::SymDimVector{s.T}, a.logits);
  if (a.forced_ids)
    check_shape(op, "forced_ids", *a.forced_ids, c10::SymDimVector{s.T, s.K}, a.logits);
  check_route_values(op, a, s);
  check_assignments(op, s.T, s.K);
  return s;
}

RouteShape check_route_backward(const RouteBackwardArgs& a) {
  constexpr const char* op = "_moe_route_backward";
  check_float(op, "logits", a.logits);
  check_int32(op, "ids", a.ids);
  FULGURITE_CHECK_TYPE(a.grad_weights.scalar_type() == accumulate_type(a.logits.scalar_type()),
                       "expected grad_weights of dtype ", accumulate_type(a.logits.scalar_type()),
                       ", got ", a.grad_weights.scalar_type());
  const RouteShape s = check_logits_ids(op, a.logits, a.ids);
  check_shape(op, "grad_weights", a.grad_weights, c10::SymDimVector{s.T, s.K}, a.logits);
  check_choice(op, "score", kScores, a.score);
  return s;
}

// ---- losses

RouteShape check_balance(const BalanceArgs& args) {
  return check_balance_as("moe_balance_loss", args);
}

RouteShape check_balance_backward(const BalanceBackwardArgs& args) {
  constexpr const char* op = "_moe_balance_loss_backward";
  const RouteShape s = check_balance_as(op, args.forward);
  check_scalar_grad(op, args.grad, args.forward.logits);
  return s;
}

namespace {

void check_z_loss_as(const char* op, const ZLossArgs& args) {
  const auto& [logits, token_mask] = args;
  check_float(op, "logits", logits);
  check_mask_dtype(op, token_mask);
  check_dim(op, "logits", logits, 2, "[T, E]");
  check_place(op, "logits", logits, logits);
  if (token_mask)
    check_shape(op, "token_mask", *token_mask, c10::SymDimVector{logits.sym_size(0)}, logits);
}

}  // namespace

void check_z_loss(const ZLossArgs& args) { check_z_loss_as("moe_z_loss", args); }

void check_z_loss_backward(const ZLossBackwardArgs& args) {
  constexpr const char* op = "_moe_z_loss_backward";
  check_z_loss_as(op, args.forward);
  check_scalar_grad(op, args.grad, args.forward.logits);
}

void check_update_bias(const UpdateBiasArgs& args) {
  constexpr const char* op = "moe_update_bias_";
  const auto& [bias, counts, rate, rule, center] = args;
  check_float(op, "bias", bias);
  check_ids_dtype(op, "counts", counts);
  check_dim(op, "bias", bias, 1, "[E]");
  check_place(op, "bias", bias, bias);
  check_shape(op, "counts", counts, bias.sym_sizes(), bias);
  check_choice(op, "rule", kBiasRules, rule);
  check_finite(op, "rate", rate);
}

// ---- plan, permute, combine

void check_plan(const PlanArgs& a) {
  constexpr const char* op = "moe_plan";
  check_ids_dtype(op, "ids", a.ids);
  if (a.weights) check_float(op, "weights", *a.weights);
  check_dim(op, "ids", a.ids, 2, "[T, K]");
  check_place(op, "ids", a.ids, a.ids);
  if (a.weights) check_shape(op, "weights", *a.weights, a.ids.sym_sizes(), a.ids);
  check_assignments(op, a.ids.sym_size(0), a.ids.sym_size(1));
  FULGURITE_CHECK_VALUE(a.num_experts >= 0, "expected num_experts >= 0, got ", a.num_experts);
  FULGURITE_CHECK_VALUE(a.capacity >= -1, "expected capacity >= 0, or -1 for none, got ",
                        a.capacity);
  const Drop drop = check_choice(op, "drop", kDrops, a.drop);
  FULGURITE_CHECK_VALUE(a.weights || drop == Drop::kToken || drop == Drop::kChoice,
                        "expected weights with drop '", a.drop, "', got none");
}

void check_permute(const PermuteArgs& args) {
  constexpr const char* op = "moe_permute";
  const auto& [x, permutation, inverse] = args;
  check_float(op, "x", x);
  check_int32(op, "permutation", permutation);
  check_int32(op, "inverse", inverse);
  check_dim(op, "x", x, 2, "[T, H]");
  check_dim(op, "inverse", inverse, 2, "[T, K]");
  check_place(op, "x", x, x);
  const c10::SymInt T = x.sym_size(0), K = inverse.sym_size(1);
  check_shape(op, "inverse", inverse, c10::SymDimVector{T, K}, x);
  check_assignments(op, T, K);
  check_shape(op, "permutation", permutation, c10::SymDimVector{T * K}, x);
}

namespace {

void check_combine_as(const char* op, const CombineArgs& args) {
  const auto& [y, inverse, weights] = args;
  check_float(op, "y", y);
  check_int32(op, "inverse", inverse);
  if (weights) check_weights_dtype(op, *weights, "y", y);
  check_dim(op, "y", y, 2, "[T*K, H]");
  check_dim(op, "inverse", inverse, 2, "[T, K]");
  check_place(op, "y", y, y);
  check_place(op, "inverse", inverse, y);
  check_assignments(op, inverse.sym_size(0), inverse.sym_size(1));
  FULGURITE_CHECK(same_size(y.sym_size(0), inverse.sym_size(0) * inverse.sym_size(1)),
                  "expected y of shape [", inverse.sym_size(0) * inverse.sym_size(1), ", H], got ",
                  y.sym_sizes());
  if (weights) check_shape(op, "weights", *weights, inverse.sym_sizes(), y);
}

}  // namespace

void check_combine(const CombineArgs& args) { check_combine_as("moe_combine", args); }

void check_combine_backward(const CombineBackwardArgs& args) {
  constexpr const char* op = "_moe_combine_backward";
  const auto& [y, inverse, weights] = args.forward;
  check_float(op, "y", y);
  check_same_dtype(op, "grad", args.grad, "y", y);
  check_combine_as(op, args.forward);
  check_shape(op, "grad", args.grad, c10::SymDimVector{inverse.sym_size(0), y.sym_size(1)}, y);
}

}  // namespace fulgurite
