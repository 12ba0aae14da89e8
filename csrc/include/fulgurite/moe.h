// Mixture of experts, for C++ programs. Shapes, semantics and errors: docs/ops/moe_*.md.
//
// Legend: T tokens, E experts, K experts per token, H width of a token, I hidden width of an
// expert.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

#include "fulgurite/config.h"

namespace fulgurite {

struct MoeRouteOptions {
  std::optional<at::Tensor> bias;  // (E), for the choice only
  std::string score = "softmax";   // softmax, softmax_topk, sigmoid, sqrtsoftplus
  int64_t n_group = 1, topk_group = 1;
  std::string group_score = "top2";  // top2, max
  bool renormalize = true;
  double eps = 1e-20, scale = 1.0;
  std::optional<at::Tensor> token_mask;  // (T) bool
  std::optional<at::Tensor> forced_ids;  // (T,K)
};

/// logits (T,E) -> weights (T,K), ids (T,K) int32, counts (E) int64. Differentiable in logits.
FULGURITE_API std::tuple<at::Tensor, at::Tensor, at::Tensor> moe_route(
    const at::Tensor& logits, int64_t k, const MoeRouteOptions& options = {});

/// Experts take tokens: logits (T,E) -> weights (E,C), token_ids (E,C) int32, C = capacity <= T.
/// Differentiable in logits.
FULGURITE_API std::tuple<at::Tensor, at::Tensor> moe_route_expert_choice(const at::Tensor& logits,
                                                                         int64_t capacity);

struct MoePlanOptions {
  int64_t capacity = -1;              // assignments that an expert keeps; −1: all
  std::string drop = "token";         // token, choice, weight, priority
  std::optional<at::Tensor> weights;  // (T,K), for weight and priority
};

/// ids (T,K) -> permutation (T·K) int32, inverse (T,K) int32, offsets (E+1) int64.
FULGURITE_API std::tuple<at::Tensor, at::Tensor, at::Tensor> moe_plan(
    const at::Tensor& ids, int64_t num_experts, const MoePlanOptions& options = {});

/// x (T,H) -> (T·K,H), sorted by expert. Differentiable.
FULGURITE_API at::Tensor moe_permute(const at::Tensor& x, const at::Tensor& permutation,
                                     const at::Tensor& inverse);

/// y (T·K,H), sorted by expert -> (T,H). Differentiable in y and weights.
FULGURITE_API at::Tensor moe_combine(const at::Tensor& y, const at::Tensor& inverse,
                                     const std::optional<at::Tensor>& weights = {});

/// Everything beyond x, ids, weights, w_in and w_out. Defaults are those of
/// torch.ops.fulgurite.moe_experts.
struct MoeExpertsOptions {
  std::optional<at::Tensor> b_in, b_out;
  std::string activation = "silu";
  bool gated = true, interleaved = false, transposed = false;
  double alpha = 1.0, limit = 0.0;
  bool save_hidden = true;
};

/// x (T,H), ids and weights (T,K), w_in (E,2I,H), w_out (E,H,I) -> (T,H). Differentiable in x,
/// weights, w_in, w_out, b_in, b_out.
FULGURITE_API at::Tensor moe_experts(const at::Tensor& x, const at::Tensor& ids,
                                     const at::Tensor& weights, const at::Tensor& w_in,
                                     const at::Tensor& w_out,
                                     const MoeExpertsOptions& options = {});

/// x (rows,K) sorted by expert, weight (E,N,K), or (E,K,N) if transposed, offsets (E+1) int64, bias (E,N) -> (rows,N).
/// Differentiable in x, weight and bias.
FULGURITE_API at::Tensor moe_grouped_mm(const at::Tensor& x, const at::Tensor& weight,
                                        const at::Tensor& offsets,
                                        const std::optional<at::Tensor>& bias = {},
                                        bool transposed = false);

struct MoeBalanceLossOptions {
  std::string score = "softmax";  // softmax, softmax_topk, sigmoid, sqrtsoftplus
  std::string kind = "switch";    // switch, hf, gshard, sequence, cv2
  std::optional<at::Tensor> sequence_ids, token_mask;
  double eps = 1e-20;
};

/// logits (T,E), ids (T,K) -> 0-dim. Differentiable in logits.
FULGURITE_API at::Tensor moe_balance_loss(const at::Tensor& logits, const at::Tensor& ids,
                                          const MoeBalanceLossOptions& options = {});

/// logits (T,E) -> 0-dim. Differentiable.
FULGURITE_API at::Tensor moe_z_loss(const at::Tensor& logits,
                                    const std::optional<at::Tensor>& token_mask = {});

/// Moves bias (E) in place by the load counts (E); rule is "sign" or "proportional".
FULGURITE_API void moe_update_bias_(const at::Tensor& bias, const at::Tensor& counts, double rate,
                                    const std::string& rule = "sign", bool center = false);

}  // namespace fulgurite
