// Validation and shape inference of the moe family, once for Meta, CPU and CUDA.
#pragma once

#include "moe/experts_args.h"

namespace fulgurite {

/// Logits (T,E) with K choices per token.
struct RouteShape {
  c10::SymInt T, E, K;
};

RouteShape check_route(const RouteArgs& args);
RouteShape check_route_backward(const RouteBackwardArgs& args);
RouteShape check_balance(const BalanceArgs& args);
RouteShape check_balance_backward(const BalanceBackwardArgs& args);
void check_z_loss(const ZLossArgs& args);
void check_z_loss_backward(const ZLossBackwardArgs& args);
void check_update_bias(const UpdateBiasArgs& args);

void check_plan(const PlanArgs& args);
void check_permute(const PermuteArgs& args);
void check_combine(const CombineArgs& args);
void check_combine_backward(const CombineBackwardArgs& args);

// ---- check_experts.cpp

struct ExpertsShape {
  c10::SymInt T, K, E, H, I;
  c10::SymInt width;  // of the hidden layer: 2I with gates, I without
};

ExpertsShape check_experts(const ExpertsArgs& args);
ExpertsShape check_experts_backward(const ExpertsBackwardArgs& args);

struct GroupedMmShape {
  c10::SymInt rows, E, depth, N;
};

GroupedMmShape check_grouped_mm(const GroupedMmArgs& args);
GroupedMmShape check_grouped_mm_backward(const GroupedMmBackwardArgs& args);

}  // namespace fulgurite
