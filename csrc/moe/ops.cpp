// Schemas of the moe family and its public C++ functions.
#include "common/define.h"
#include "fulgurite/moe.h"
#include "moe/experts_args.h"

#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(fulgurite, m) {
  fulgurite::define(
      m,
      "moe_route(Tensor logits, int k, *, Tensor? bias=None, str score=\"softmax\", int n_group=1, "
      "int topk_group=1, "
      "str group_score=\"top2\", bool renormalize=True, float eps=1e-20, float scale=1.0, Tensor? "
      "token_mask=None, "
      "Tensor? forced_ids=None) -> (Tensor weights, Tensor ids, Tensor counts)");
  fulgurite::define(
      m,
      "_moe_route_backward(Tensor grad_weights, Tensor logits, Tensor ids, *, str score, bool "
      "renormalize, float eps, float scale, "
      "bool[1] output_mask) -> Tensor");
  fulgurite::define(
      m,
      "moe_plan(Tensor ids, SymInt num_experts, *, SymInt capacity=-1, str drop=\"token\", Tensor? "
      "weights=None) "
      "-> (Tensor permutation, Tensor inverse, Tensor offsets)");
  fulgurite::define(m, "moe_permute(Tensor x, Tensor permutation, Tensor inverse) -> Tensor");
  fulgurite::define(m, "moe_combine(Tensor y, Tensor inverse, Tensor? weights=None) -> Tensor");
  fulgurite::define(
      m,
      "_moe_combine_backward(Tensor grad, Tensor y, Tensor inverse, Tensor? weights, *, bool[2] "
      "output_mask) "
      "-> (Tensor grad_y, Tensor grad_weights)");
  fulgurite::define(
      m,
      "moe_experts(Tensor x, Tensor ids, Tensor weights, Tensor w_in, Tensor w_out, *, Tensor? "
      "b_in=None, Tensor? b_out=None, "
      "str activation=\"silu\", bool gated=True, bool interleaved=False, bool transposed=False, "
      "float alpha=1.0, float limit=0.0, "
      "bool save_hidden=True) -> Tensor");
  fulgurite::define(
      m,
      "_moe_experts_forward(Tensor x, Tensor ids, Tensor weights, Tensor w_in, Tensor w_out, *, "
      "Tensor? b_in=None, Tensor? b_out=None, str activation=\"silu\", bool gated=True, "
      "bool interleaved=False, bool transposed=False, float alpha=1.0, float limit=0.0) -> "
      "(Tensor y, Tensor hidden)");
  fulgurite::define(
      m,
      "_moe_experts_backward(Tensor grad, Tensor x, Tensor ids, Tensor weights, Tensor w_in, "
      "Tensor w_out, Tensor? hidden, *, Tensor? b_in=None, Tensor? b_out=None, "
      "str activation=\"silu\", bool gated=True, bool interleaved=False, bool transposed=False, "
      "float alpha=1.0, float limit=0.0, bool[6] output_mask) -> (Tensor grad_x, "
      "Tensor grad_weights, Tensor grad_w_in, Tensor grad_w_out, Tensor grad_b_in, "
      "Tensor grad_b_out)");
  fulgurite::define(m,
                    "moe_grouped_mm(Tensor x, Tensor weight, Tensor offsets, *, Tensor? bias=None, "
                    "bool transposed=False) -> Tensor");
  fulgurite::define(
      m,
      "_moe_grouped_mm_backward(Tensor grad, Tensor x, Tensor weight, Tensor offsets, *, "
      "bool transposed, bool[3] output_mask) -> (Tensor grad_x, Tensor grad_weight, "
      "Tensor grad_bias)");
  fulgurite::define(
      m,
      "moe_balance_loss(Tensor logits, Tensor ids, *, str score=\"softmax\", str kind=\"switch\", "
      "Tensor? sequence_ids=None, "
      "Tensor? token_mask=None, float eps=1e-20) -> Tensor");
  fulgurite::define(
      m,
      "_moe_balance_loss_backward(Tensor grad, Tensor logits, Tensor ids, *, str score, str kind, "
      "Tensor? sequence_ids, "
      "Tensor? token_mask, float eps, bool[1] output_mask) -> Tensor");
  fulgurite::define(m, "moe_z_loss(Tensor logits, *, Tensor? token_mask=None) -> Tensor");
  fulgurite::define(
      m,
      "_moe_z_loss_backward(Tensor grad, Tensor logits, *, Tensor? token_mask, bool[1] "
      "output_mask) -> Tensor");
  fulgurite::define(
      m,
      "moe_update_bias_(Tensor(a!) bias, Tensor counts, float rate, *, str rule=\"sign\", bool "
      "center=False) -> ()");
}

namespace fulgurite {

std::tuple<Tensor, Tensor, Tensor> moe_route(const Tensor& logits, int64_t k,
                                             const MoeRouteOptions& o) {
  return call(arguments_of<RouteArgs>(logits, k, o.bias, o.score, o.n_group, o.topk_group,
                                      o.group_score, o.renormalize, o.eps, o.scale, o.token_mask,
                                      o.forced_ids));
}

std::tuple<Tensor, Tensor> moe_route_expert_choice(const Tensor& logits, int64_t capacity) {
  return call(ExpertChoiceArgs{logits, capacity});
}

std::tuple<Tensor, Tensor, Tensor> moe_plan(const Tensor& ids, int64_t num_experts,
                                            const MoePlanOptions& o) {
  return call(PlanArgs{ids, num_experts, o.capacity, o.drop, o.weights});
}

Tensor moe_permute(const Tensor& x, const Tensor& permutation, const Tensor& inverse) {
  return call(PermuteArgs{x, permutation, inverse});
}

Tensor moe_combine(const Tensor& y, const Tensor& inverse, const std::optional<Tensor>& weights) {
  return call(CombineArgs{y, inverse, weights});
}

Tensor moe_experts(const Tensor& x, const Tensor& ids, const Tensor& weights, const Tensor& w_in,
                   const Tensor& w_out, const MoeExpertsOptions& o) {
  return call(arguments_of<ExpertsArgs>(x, ids, weights, w_in, w_out, o.b_in, o.b_out, o.activation,
                                        o.gated, o.interleaved, o.transposed, o.alpha, o.limit,
                                        o.save_hidden));
}

Tensor moe_grouped_mm(const Tensor& x, const Tensor& weight, const Tensor& offsets,
                      const std::optional<Tensor>& bias, bool transposed) {
  return call(GroupedMmArgs{x, weight, offsets, bias, transposed});
}

Tensor moe_balance_loss(const Tensor& logits, const Tensor& ids, const MoeBalanceLossOptions& o) {
  return call(BalanceArgs{logits, ids, o.score, o.kind, o.sequence_ids, o.token_mask, o.eps});
}

Tensor moe_z_loss(const Tensor& logits, const std::optional<Tensor>& token_mask) {
  return call(ZLossArgs{logits, token_mask});
}

void moe_update_bias_(const Tensor& bias, const Tensor& counts, double rate,
                      const std::string& rule, bool center) {
  call(UpdateBiasArgs{bias, counts, rate, rule, center});
}

}  // namespace fulgurite
