// The arguments of each operator as one struct, so that the long lists of the schemas stand in C++
// once: here. x_from_schema<f> is the function to register: it gathers the arguments and calls
// f(args).
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

#include "common/op_handle.h"

namespace fulgurite {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// ---- routing

using RouteResult = std::tuple<Tensor, Tensor, Tensor>;  // weights, ids, counts

struct RouteArgs {
  Tensor logits;
  int64_t k;
  OptionalTensor bias;
  std::string_view score;
  int64_t n_group, topk_group;
  std::string_view group_score;
  bool renormalize;
  double eps, scale;
  OptionalTensor token_mask, forced_ids;

  using Signature = RouteResult(const Tensor&, int64_t, const OptionalTensor&, std::string_view,
                                int64_t, int64_t, std::string_view, bool, double, double,
                                const OptionalTensor&, const OptionalTensor&);
  RouteResult call() const {
    static const auto op = op_handle<Signature>("moe_route");
    return op.call(logits, k, bias, score, n_group, topk_group, group_score, renormalize, eps,
                   scale, token_mask, forced_ids);
  }
};

template <RouteResult (*f)(const RouteArgs&)>
RouteResult route_from_schema(const Tensor& logits, int64_t k, const OptionalTensor& bias,
                              std::string_view score, int64_t n_group, int64_t topk_group,
                              std::string_view group_score, bool renormalize, double eps,
                              double scale, const OptionalTensor& token_mask,
                              const OptionalTensor& forced_ids) {
  return f({logits, k, bias, score, n_group, topk_group, group_score, renormalize, eps, scale,
            token_mask, forced_ids});
}

struct RouteBackwardArgs {
  Tensor grad_weights, logits, ids;
  std::string_view score;
  bool renormalize;
  double eps, scale;
  std::array<bool, 1> output_mask;

  using Signature = Tensor(const Tensor&, const Tensor&, const Tensor&, std::string_view, bool,
                           double, double, std::array<bool, 1>);
  Tensor call() const {
    static const auto op = op_handle<Signature>("_moe_route_backward");
    return op.call(grad_weights, logits, ids, score, renormalize, eps, scale, output_mask);
  }
};

template <Tensor (*f)(const RouteBackwardArgs&)>
Tensor route_backward_from_schema(const Tensor& grad_weights, const Tensor& logits,
                                  const Tensor& ids, std::string_view score, bool renormalize,
                                  double eps, double scale, std::array<bool, 1> output_mask) {
  return f({grad_weights, logits, ids, score, renormalize, eps, scale, output_mask});
}

// ---- losses

struct BalanceArgs {
  Tensor logits, ids;
  std::string_view score, kind;
  OptionalTensor sequence_ids, token_mask;
  double eps;

  using Signature = Tensor(const Tensor&, const Tensor&, std::string_view, std::string_view,
                           const OptionalTensor&, const OptionalTensor&, double);
  Tensor call() const {
    static const auto op = op_handle<Signature>("moe_balance_loss");
    return op.call(logits, ids, score, kind, sequence_ids, token_mask, eps);
  }

  using BackwardSignature = Tensor(const Tensor&, const Tensor&, const Tensor&, std::string_view,
                                   std::string_view, const OptionalTensor&, const OptionalTensor&,
                                   double, std::array<bool, 1>);
  Tensor call_backward(const Tensor& grad) const {
    static const auto op = op_handle<BackwardSignature>("_moe_balance_loss_backward");
    return op.call(grad, logits, ids, score, kind, sequence_ids, token_mask, eps, {true});
  }
};

template <Tensor (*f)(const BalanceArgs&)>
Tensor balance_from_schema(const Tensor& logits, const Tensor& ids, std::string_view score,
                           std::string_view kind, const OptionalTensor& sequence_ids,
                           const OptionalTensor& token_mask, double eps) {
  return f({logits, ids, score, kind, sequence_ids, token_mask, eps});
}

template <Tensor (*f)(const Tensor&, const BalanceArgs&, bool)>
Tensor balance_backward_from_schema(const Tensor& grad, const Tensor& logits, const Tensor& ids,
                                    std::string_view score, std::string_view kind,
                                    const OptionalTensor& sequence_ids,
                                    const OptionalTensor& token_mask, double eps,
                                    std::array<bool, 1> output_mask) {
  return f(grad, {logits, ids, score, kind, sequence_ids, token_mask, eps}, output_mask[0]);
}

inline Tensor call_z_loss(const Tensor& logits, const OptionalTensor& token_mask) {
  static const auto op = op_handle<Tensor(const Tensor&, const OptionalTensor&)>("moe_z_loss");
  return op.call(logits, token_mask);
}
inline Tensor call_z_loss_backward(const Tensor& grad, const Tensor& logits,
                                   const OptionalTensor& token_mask) {
  static const auto op =
      op_handle<Tensor(const Tensor&, const Tensor&, const OptionalTensor&, std::array<bool, 1>)>(
          "_moe_z_loss_backward");
  return op.call(grad, logits, token_mask, {true});
}

inline void call_update_bias(const Tensor& bias, const Tensor& counts, double rate,
                             std::string_view rule, bool center) {
  static const auto op =
      op_handle<void(const Tensor&, const Tensor&, double, std::string_view, bool)>(
          "moe_update_bias_");
  op.call(bias, counts, rate, rule, center);
}

// ---- plan, permute, combine

using PlanResult = std::tuple<Tensor, Tensor, Tensor>;  // permutation, inverse, offsets

struct PlanArgs {
  Tensor ids;
  c10::SymInt num_experts, capacity;
  std::string_view drop;
  OptionalTensor weights;

  using Signature = PlanResult(const Tensor&, c10::SymInt, c10::SymInt, std::string_view,
                               const OptionalTensor&);
  PlanResult call() const {
    static const auto op = op_handle<Signature>("moe_plan");
    return op.call(ids, num_experts, capacity, drop, weights);
  }
};

template <PlanResult (*f)(const PlanArgs&)>
PlanResult plan_from_schema(const Tensor& ids, c10::SymInt num_experts, c10::SymInt capacity,
                            std::string_view drop, const OptionalTensor& weights) {
  return f({ids, std::move(num_experts), std::move(capacity), drop, weights});
}

inline Tensor call_permute(const Tensor& x, const Tensor& permutation, const Tensor& inverse) {
  static const auto op =
      op_handle<Tensor(const Tensor&, const Tensor&, const Tensor&)>("moe_permute");
  return op.call(x, permutation, inverse);
}
inline Tensor call_combine(const Tensor& y, const Tensor& inverse, const OptionalTensor& weights) {
  static const auto op =
      op_handle<Tensor(const Tensor&, const Tensor&, const OptionalTensor&)>("moe_combine");
  return op.call(y, inverse, weights);
}
inline std::tuple<Tensor, Tensor> call_combine_backward(const Tensor& grad, const Tensor& y,
                                                        const Tensor& inverse,
                                                        const OptionalTensor& weights,
                                                        std::array<bool, 2> output_mask) {
  static const auto op = op_handle<std::tuple<Tensor, Tensor>(
      const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, std::array<bool, 2>)>(
      "_moe_combine_backward");
  return op.call(grad, y, inverse, weights, output_mask);
}

}  // namespace fulgurite
