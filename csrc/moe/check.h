// Validation and shape inference of the moe family, once for Meta, CPU and CUDA.
#pragma once

#include "moe/args.h"

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

struct ExpertsShape {
  c10::SymInt T, K, E, H, I;
};

ExpertsShape check_experts(const ExpertsArgs& args);
/// What _moe_experts_forward and _moe_experts_backward share: the plain layout.
ExpertsShape check_experts_tensors(const char* op, const Tensor& x, const Tensor& ids,
                                   const Tensor& weights, const Tensor& w_in, const Tensor& w_out);
ExpertsShape check_experts_backward(const ExpertsBackwardArgs& args);

}  // namespace fulgurite
