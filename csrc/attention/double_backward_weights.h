// From scores to weights, for a tile of pairs, with everything that the second derivatives need of them. A dot is the
// derivative in the direction h of double_backward.cpp.
//
//   softmax   δ = Σ P∘A − g_lse    lsė = Σ P∘ṡ    Ṗ = P∘(ṡ − lsė)    S = P∘(A − δ)
//             U = (A − δ)∘(ṡ − lsė) + Ȧ          E = P∘(U − Σ P∘U)
//             sums run over a sink too, one more column with A = Ȧ = 0 and ṡ = hσ
//   relu2     P = g·relu(s)²                     a' = 2g·relu(s)               a'' = 2g·[s > 0]
//   laplace   P = g·½(1 + erf((s − √½)·√(2π)))   a' = g·√2·exp(−2π(s − √½)²)   a'' = −4π(s − √½)·a'
//             Ṗ = a'∘ṡ    S = a'∘A    E = a''∘A∘ṡ + a'∘Ȧ
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>

#include <cmath>
#include <limits>
#include <numbers>

#include "attention/rules/choices.h"

namespace fulgurite {

/// (heads, rows, keys) in the accumulation type.
struct Pairs {
  at::Tensor hidden;                     // not kept; heads may be 1
  at::Tensor score, score_dot;           // s and ṡ
  at::Tensor product_dot, slope, curve;  // ẋ, f', f''; the last two are undefined without a softcap
  at::Tensor grad_weight, grad_weight_dot;  // A and Ȧ
  at::Tensor keep;                          // z; undefined without dropout
};

/// The last two are (heads, rows, 1), and undefined where there is no lse or no sink.
struct Weights {
  at::Tensor weight, weight_dot;          // P and Ṗ
  at::Tensor grad_score_dot, grad_score;  // S and E
  at::Tensor lse_dot, grad_sink;          // lsė and the sink's E
};

/// The sink and what comes in for its gradient are (heads, 1, 1). Any tensor but the pairs may be undefined.
inline Weights softmax_weights(const Pairs& p, const at::Tensor& grad_lse, const at::Tensor& sink,
                               const at::Tensor& gg_sink) {
  using at::Tensor;
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const auto sum = [](const Tensor& t) { return t.sum(-1, true); };
  const Tensor score = p.score.masked_fill(p.hidden, -kInfinity);
  Tensor lse = score.logsumexp(-1, true);
  if (sink.defined()) lse = lse.logaddexp(sink);
  lse.masked_fill_(lse.eq(-kInfinity), 0);  // nothing kept: every score is −inf
  Tensor weight = (score - lse).exp_(), total = sum(weight), sink_weight;
  if (sink.defined()) {
    sink_weight = (sink - lse).exp_();
    total += sink_weight;
  }
  // Divided by their sum, the weights do not share the rounding of lse.
  total.masked_fill_(total.eq(0), 1);
  weight /= total;
  if (sink.defined()) sink_weight /= total;

  Tensor delta = sum(weight * p.grad_weight), lse_dot = sum(weight * p.score_dot);
  if (grad_lse.defined()) delta -= grad_lse;
  if (gg_sink.defined()) lse_dot += sink_weight * gg_sink;
  const Tensor centred = p.score_dot - lse_dot, slope = p.grad_weight - delta;
  const Tensor u = (slope * centred).add_(p.grad_weight_dot);
  Tensor mean = sum(weight * u), grad_sink;
  if (sink.defined()) {
    const Tensor sink_dot = gg_sink.defined() ? gg_sink - lse_dot : -lse_dot;
    const Tensor sink_u = -delta * sink_dot;
    mean += sink_weight * sink_u;
    grad_sink = sink_weight * (sink_u - mean);
  }
  return {weight, weight * centred, weight * slope, weight * (u - mean), lse_dot, grad_sink};
}

inline Weights activation_weights(const Pairs& p, ScoreKind kind, double g) {
  using at::Tensor;
  Tensor weight, first, second;
  switch (kind) {
    case ScoreKind::kRelu2: {
      const Tensor positive = p.score.relu();
      weight = positive * positive * g;
      first = positive * (2 * g);
      second = p.score.gt(0).to(p.score.scalar_type()) * (2 * g);
      break;
    }
    case ScoreKind::kLaplace: {
      constexpr double kPi = std::numbers::pi, kRootTwo = std::numbers::sqrt2;
      const Tensor centred = p.score - kRootTwo / 2;
      weight = ((centred * std::sqrt(2 * kPi)).erf_() + 1) * (0.5 * g);
      first = (centred * centred * (-2 * kPi)).exp_() * (g * kRootTwo);
      second = first * centred * (-4 * kPi);
      break;
    }
    case ScoreKind::kSoftmax: TORCH_INTERNAL_ASSERT(false, "softmax has weights of its own");
  }
  const Tensor grad_score = second * p.grad_weight * p.score_dot + first * p.grad_weight_dot;
  return {weight, first * p.score_dot, first * p.grad_weight, grad_score, Tensor(), Tensor()};
}

}  // namespace fulgurite
