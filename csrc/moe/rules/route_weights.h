// The weights of the experts that a token has chosen, and their gradients; but for the softmax over all experts these depend on the
// chosen logits alone. V holds one token, or one in each lane. V and Math: common/value.h.
//
//   weights  = scale · { softmax over the chosen logits             softmax_topk, or softmax with renormalize
//                      { softmax over all logits, at the chosen     softmax
//                      { s_j / (Σ_chosen s + eps)                   sigmoid, sqrtsoftplus with renormalize
//                      { s_j                                        without
//
// backward, with g the gradient of the weights times scale, w the unscaled weights, s the scores:
//
//   softmax over the chosen:   dl_j = w_j (g_j − Σ g w)
//   softmax over all:          dl_e = p_e (G_e − Σ g w)               G_e: g scattered to the experts
//   s/(Σs + eps) = s/D:        dl_j = s'_j (g_j − Σ g w)/D            without renormalize: s'_j g_j
#pragma once

#include "moe/rules/problem.h"
#include "moe/rules/scores.h"

namespace fulgurite {

/// Whether the weights depend on every logit of the token.
FULGURITE_HOST_DEVICE bool is_over_all(const RouteProblem& p) {
  return p.score == Score::kSoftmax && !p.renormalize;
}
FULGURITE_HOST_DEVICE bool is_expert(const RouteProblem& p, int64_t id) {
  return id >= 0 && id < p.E;
}

/// A sum, or a sum of products, as if in twice the precision: what every addition rounds off is added in the end.
template <class Math, class V>
class ExactSum {
 public:
  FULGURITE_HOST_DEVICE void add(V x) {
    const V sum = sum_ + x, taken = sum - sum_;
    lost_ += (sum_ - (sum - taken)) + (x - taken);
    sum_ = sum;
  }
  FULGURITE_HOST_DEVICE void add_product(V a, V b) {
    const V product = a * b;
    add(product);
    lost_ += Math::fma(a, b, -product);
  }
  /// Infinite sums have lost NaN.
  FULGURITE_HOST_DEVICE V value() const { return lost_ == lost_ ? sum_ + lost_ : sum_; }

 private:
  V sum_ = {}, lost_ = {};
};

/// K values each.
template <class V>
struct Chosen {
  Integer<V>* ids;
  V* logits;             // −inf at sentinels
  V* scores;             // the numerators
  V* weights;            // before scaling; 0 at sentinels
  V* grads;              // backward: of the weights, times scale; 0 at sentinels
  V highest{}, total{};  // of all logits, for the softmax over all
};

/// Fills in scores and weights; returns what the scores were divided by.
template <class Math, class V>
FULGURITE_HOST_DEVICE V weigh_chosen(const RouteProblem& p, const Chosen<V>& c) {
  using T = Number<V>;
  const Score score = p.score;  // a copy: what is stored below could alias the problem
  const bool softmax = is_softmax(score);
  V highest = c.highest;
  if (!is_over_all(p)) {
    highest = uniform<V>(-static_cast<T>(__builtin_inf()));
    for (int64_t j = 0; j < p.K; ++j)
      highest = Math::max(c.logits[j], highest);  // NaN are passed over
  }
  ExactSum<Math, V> total;
  for (int64_t j = 0; j < p.K; ++j) {
    c.scores[j] = softmax ? Math::exp(c.logits[j] - highest) : own_score<Math>(score, c.logits[j]);
    total.add(c.scores[j]);
  }
  V divisor = uniform<V>(T(1));
  if (is_over_all(p))
    divisor = c.total;
  else if (softmax)
    divisor = total.value();
  else if (p.renormalize)
    divisor = total.value() + static_cast<T>(p.eps);
  for (int64_t j = 0; j < p.K; ++j) {
    const auto real = (c.ids[j] >= 0) & (c.ids[j] < static_cast<Number<Integer<V>>>(p.E));
    c.weights[j] = real ? c.scores[j] / divisor : V{};
  }
  return divisor;
}

/// c.grads, from those of the weights to those of the chosen logits.
template <class Math, class V>
FULGURITE_HOST_DEVICE void grad_chosen(const RouteProblem& p, const Chosen<V>& c) {
  const Score score = p.score;
  const bool softmax = is_softmax(score);
  const V divisor = weigh_chosen<Math>(p, c);
  ExactSum<Math, V> sum;
  if (softmax || p.renormalize)
    for (int64_t j = 0; j < p.K; ++j) sum.add_product(c.grads[j], c.weights[j]);
  const V dot = sum.value();
  for (int64_t j = 0; j < p.K; ++j) {
    const V g = c.grads[j] - dot;
    c.grads[j] = softmax ? c.weights[j] * g
                         : own_score_slope<Math>(score, c.logits[j], c.scores[j]) * (g / divisor);
  }
}

}  // namespace fulgurite
