// The arguments of routing, losses and plans (common/arguments.h). Those of the experts: experts_args.h.
#pragma once

#include "common/arguments.h"

namespace fulgurite {

// ---- routing

using RouteResult = std::tuple<Tensor, Tensor, Tensor>;  // weights, ids, counts

struct RouteArgs {
  static constexpr const char* kName = "moe_route";
  using Result = RouteResult;
  Tensor logits;
  int64_t k;
  OptionalTensor bias;
  std::string_view score;
  int64_t n_group, topk_group;
  std::string_view group_score;
  bool renormalize;
  double eps, scale;
  OptionalTensor token_mask, forced_ids;
  FULGURITE_MEMBERS(logits, k, bias, score, n_group, topk_group, group_score, renormalize, eps,
                    scale, token_mask, forced_ids)
  FULGURITE_INPUTS(logits)
};

struct RouteBackwardArgs {
  static constexpr const char* kName = "_moe_route_backward";
  using Result = Tensor;
  Tensor grad_weights, logits, ids;
  std::string_view score;
  bool renormalize;
  double eps, scale;
  std::array<bool, 1> output_mask;
  FULGURITE_MEMBERS(grad_weights, logits, ids, score, renormalize, eps, scale, output_mask)
};

using ExpertChoiceResult = std::tuple<Tensor, Tensor>;  // weights, token_ids

struct ExpertChoiceArgs {
  static constexpr const char* kName = "moe_route_expert_choice";
  using Result = ExpertChoiceResult;
  Tensor logits;
  c10::SymInt capacity;
  FULGURITE_MEMBERS(logits, capacity)
  FULGURITE_INPUTS(logits)
};

struct ExpertChoiceBackwardArgs {
  static constexpr const char* kName = "_moe_route_expert_choice_backward";
  using Result = Tensor;
  Tensor grad_weights, logits, token_ids;
  std::array<bool, 1> output_mask;
  FULGURITE_MEMBERS(grad_weights, logits, token_ids, output_mask)
};

// ---- losses

struct BalanceArgs {
  static constexpr const char* kName = "moe_balance_loss";
  using Result = Tensor;
  Tensor logits, ids;
  std::string_view score, kind;
  OptionalTensor sequence_ids, token_mask;
  double eps;
  FULGURITE_MEMBERS(logits, ids, score, kind, sequence_ids, token_mask, eps)
  FULGURITE_INPUTS(logits)
};

struct BalanceBackwardArgs {
  static constexpr const char* kName = "_moe_balance_loss_backward";
  using Result = Tensor;
  Tensor grad;  // of the 0-dim loss
  BalanceArgs forward;
  std::array<bool, 1> output_mask;
  FULGURITE_MEMBERS(grad, forward, output_mask)
};

struct ZLossArgs {
  static constexpr const char* kName = "moe_z_loss";
  using Result = Tensor;
  Tensor logits;
  OptionalTensor token_mask;
  FULGURITE_MEMBERS(logits, token_mask)
  FULGURITE_INPUTS(logits)
};

struct ZLossBackwardArgs {
  static constexpr const char* kName = "_moe_z_loss_backward";
  using Result = Tensor;
  Tensor grad;
  ZLossArgs forward;
  std::array<bool, 1> output_mask;
  FULGURITE_MEMBERS(grad, forward, output_mask)
};

struct UpdateBiasArgs {
  static constexpr const char* kName = "moe_update_bias_";
  using Result = void;
  Tensor bias, counts;
  double rate;
  std::string_view rule;
  bool center;
  FULGURITE_MEMBERS(bias, counts, rate, rule, center)
};

// ---- plan, permute, combine

using PlanResult = std::tuple<Tensor, Tensor, Tensor>;  // permutation, inverse, offsets

struct PlanArgs {
  static constexpr const char* kName = "moe_plan";
  using Result = PlanResult;
  Tensor ids;
  c10::SymInt num_experts, capacity;
  std::string_view drop;
  OptionalTensor weights;
  FULGURITE_MEMBERS(ids, num_experts, capacity, drop, weights)
};

struct PermuteArgs {
  static constexpr const char* kName = "moe_permute";
  using Result = Tensor;
  Tensor x, permutation, inverse;
  FULGURITE_MEMBERS(x, permutation, inverse)
  FULGURITE_INPUTS(x)
};

struct CombineArgs {
  static constexpr const char* kName = "moe_combine";
  using Result = Tensor;
  Tensor y, inverse;
  OptionalTensor weights;
  FULGURITE_MEMBERS(y, inverse, weights)
  FULGURITE_INPUTS(y, weights)
};

struct CombineBackwardArgs {
  static constexpr const char* kName = "_moe_combine_backward";
  using Result = std::tuple<Tensor, Tensor>;  // of y, of weights
  Tensor grad;
  CombineArgs forward;
  std::array<bool, 2> output_mask;
  FULGURITE_MEMBERS(grad, forward, output_mask)
};

}  // namespace fulgurite
