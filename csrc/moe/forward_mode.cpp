#include "moe/forward_mode.h"

#include "common/autograd.h"
#include "common/check.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/_make_dual.h>
#include <ATen/ops/_unpack_dual.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/softplus.h>
#include <ATen/ops/zeros_like.h>

#include <limits>

namespace fulgurite {
namespace {

/// A tensor and how it moves; `dot` is undefined where it does not.
struct Moving {
  Tensor value, dot;

  Moving(const OptionalTensor& t, at::ScalarType dtype) {
    if (!t) return;
    const at::AutoDispatchBelowADInplaceOrView below;
    value = t->detach().to(dtype);
    if (const Tensor tangent = t->_fw_grad(/*level=*/0); tangent.defined()) dot = tangent.to(dtype);
  }
};

/// The tangent of f(x) by ATen's forward mode.
template <class F>
Tensor tangent_of(const Tensor& x, const Tensor& dot, const F& f) {
  return std::get<1>(at::_unpack_dual(f(at::_make_dual(x, dot, /*level=*/0)), /*level=*/0));
}

Tensor plus(const Tensor& a, const Tensor& b) {
  return !a.defined() ? b : !b.defined() ? a : a + b;
}

Tensor activate(const ExpertsArgs& a, const Tensor& gate) {
  if (a.activation == "silu") return at::silu(gate);
  if (a.activation == "relu") return at::relu(gate);
  if (a.activation == "relu2") return at::relu(gate).square();
  return at::gelu(gate, a.activation == "gelu" ? "none" : "tanh");
}

/// From the hidden layer (rows,width) to what w_out multiplies (rows,I).
Tensor activated(const ExpertsArgs& a, const Tensor& hidden) {
  if (!a.gated) return activate(a, hidden);
  const int64_t I = hidden.size(1) / 2, stride = a.interleaved ? 2 : 1,
                up_at = a.interleaved ? 1 : I;
  Tensor gate = hidden.slice(1, 0, a.interleaved ? 2 * I : I, stride),
         up = hidden.slice(1, up_at, 2 * I, stride);
  if (a.activation != "swiglu_oai") return activate(a, gate) * up;
  if (a.limit > 0) {
    gate = gate.clamp_max(a.limit);
    up = up.clamp(-a.limit, a.limit);
  }
  return gate * (gate * a.alpha).sigmoid() * (up + 1);
}

/// Products of rows that are sorted by expert, below autograd: its functions would ask for gradients.
class SortedProducts {
 public:
  SortedProducts(const ExpertsArgs& a, int64_t experts)
      : transposed_(a.transposed), plan_(call(PlanArgs{a.ids, experts, -1, "token", {}})) {}

  Tensor permute(const Tensor& x) const {
    return x.defined() ? call(PermuteArgs{x, std::get<0>(plan_), std::get<1>(plan_)}) : x;
  }
  /// Undefined where a factor is.
  Tensor multiply(const Tensor& rows, const Tensor& weight, const Tensor& bias = {}) const {
    if (!rows.defined() || !weight.defined()) return {};
    return call(GroupedMmArgs{rows, weight, std::get<2>(plan_), if_defined(bias), transposed_});
  }
  Tensor combine(const Tensor& y, const Tensor& weights) const {
    if (!y.defined() || !weights.defined()) return {};
    return call(CombineArgs{y, std::get<1>(plan_), weights});
  }

 private:
  const at::AutoDispatchBelowADInplaceOrView below_;
  bool transposed_;
  PlanResult plan_;
};

/// A bias that moves alone: as its product with rows that are all zero.
Tensor bias_rows(const SortedProducts& sorted, const Tensor& rows, const Tensor& weight,
                 const Tensor& bias) {
  return bias.defined() ? sorted.multiply(at::zeros_like(rows), weight, bias) : bias;
}

}  // namespace

Tensor experts_tangent(const ExpertsArgs& a) {
  const at::ScalarType wide = accumulate_type(a.x.scalar_type());
  const Moving x(a.x, wide), weights(a.weights, wide), w_in(a.w_in, wide), w_out(a.w_out, wide),
      b_in(a.b_in, wide), b_out(a.b_out, wide);
  Tensor rows, hidden, hidden_dot;
  {
    const SortedProducts sorted(a, w_in.value.size(0));
    rows = sorted.permute(x.value);
    hidden = sorted.multiply(rows, w_in.value, b_in.value);
    hidden_dot = plus(
        plus(sorted.multiply(sorted.permute(x.dot), w_in.value), sorted.multiply(rows, w_in.dot)),
        bias_rows(sorted, rows, w_in.value, b_in.dot));
  }
  const auto f = [&](const Tensor& h) { return activated(a, h); };
  const Tensor inner = f(hidden),
               inner_dot = hidden_dot.defined() ? tangent_of(hidden, hidden_dot, f) : Tensor();
  const SortedProducts sorted(a, w_in.value.size(0));
  const Tensor y_dot =
      plus(plus(sorted.multiply(inner_dot, w_out.value), sorted.multiply(inner, w_out.dot)),
           bias_rows(sorted, inner, w_out.value, b_out.dot));
  return plus(
             sorted.combine(y_dot, weights.value),
             sorted.combine(weights.dot.defined() ? sorted.multiply(inner, w_out.value, b_out.value)
                                                  : Tensor(),
                            weights.dot))
      .to(a.x.scalar_type());
}

Tensor route_tangent(const RouteArgs& a, const Tensor& ids) {
  const Moving logits(a.logits, accumulate_type(a.logits.scalar_type()));
  const int64_t E = logits.value.size(1);
  const Tensor chosen = ids.clamp(0, E - 1).to(at::kLong), none = ids.lt(0).logical_or(ids.ge(E));
  const bool softmax = a.score == "softmax" || a.score == "softmax_topk";
  const auto weigh = [&](const Tensor& x) {
    if (softmax && !a.renormalize && a.score == "softmax")
      return x.softmax(-1).gather(1, chosen).masked_fill(none, 0) * a.scale;
    const Tensor picked = x.gather(1, chosen);
    if (softmax)
      return picked.masked_fill(none, -std::numeric_limits<double>::infinity())
                 .softmax(-1)
                 .masked_fill(none, 0) *
             a.scale;
    const Tensor score = (a.score == "sigmoid" ? picked.sigmoid() : at::softplus(picked).sqrt())
                             .masked_fill(none, 0);
    return (a.renormalize ? score / (score.sum(-1, /*keepdim=*/true) + a.eps) : score) * a.scale;
  };
  return tangent_of(logits.value, logits.dot, weigh);
}

}  // namespace fulgurite
