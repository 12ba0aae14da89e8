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
/// grad: the gradient of the 0-dim loss.
RouteShape check_balance_backward(const Tensor& grad, const BalanceArgs& args);
void check_z_loss(const char* op, const Tensor& logits, const OptionalTensor& token_mask);
void check_z_loss_backward(const Tensor& grad, const Tensor& logits,
                           const OptionalTensor& token_mask);
void check_update_bias(const Tensor& bias, const Tensor& counts, std::string_view rule);

void check_plan(const PlanArgs& args);
void check_permute(const Tensor& x, const Tensor& permutation, const Tensor& inverse);
void check_combine(const char* op, const Tensor& y, const Tensor& inverse,
                   const OptionalTensor& weights);
void check_combine_backward(const Tensor& grad, const Tensor& y, const Tensor& inverse,
                            const OptionalTensor& weights);

// ---- check_experts.cpp

struct ExpertsShape {
  c10::SymInt T, K, E, H, I;
  c10::SymInt width;  // of the hidden layer: 2I with gates, I without
};

ExpertsShape check_experts(const char* op, const ExpertsArgs& args);
ExpertsShape check_experts_backward(const ExpertsBackwardArgs& args);

struct GroupedMmShape {
  c10::SymInt rows, E, depth, N;
};

GroupedMmShape check_grouped_mm(const GroupedMmArgs& args);
GroupedMmShape check_grouped_mm_backward(const GroupedMmBackwardArgs& args);

}  // namespace fulgurite
