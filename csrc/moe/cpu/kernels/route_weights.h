// Weights of chosen experts, for both directions: one token in each lane, a vector for each of its K choices. But for the softmax
// over all experts they depend on the chosen logits alone.
#pragma once

#include "moe/cpu/kernels/rows.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

FULGURITE_INLINE bool is_softmax(Score score) {
  return score == Score::kSoftmax || score == Score::kSoftmaxTopk;
}
/// Whether the weights depend on every logit of the token.
FULGURITE_INLINE bool is_over_all(const RouteParams& p) {
  return p.score == Score::kSoftmax && !p.renormalize;
}
FULGURITE_INLINE bool is_expert(const RouteParams& p, int64_t id) { return id >= 0 && id < p.E; }

/// A sum, or a sum of products, as if in twice the precision: what every addition rounds off is added in the end.
template <class V>
class ExactSum {
 public:
  FULGURITE_INLINE void add(V x) {
    const V sum = sum_ + x, taken = sum - sum_;
    lost_ += (sum_ - (sum - taken)) + (x - taken);
    sum_ = sum;
  }
  FULGURITE_INLINE void add_product(V a, V b) {
    const V product = a * b;
    add(product);
    lost_ += fma(a, b, -product);
  }
  /// Infinite sums have lost NaN.
  FULGURITE_INLINE V value() const { return lost_ == lost_ ? sum_ + lost_ : sum_; }

 private:
  V sum_ = {}, lost_ = {};
};

/// K vectors each.
template <class V>
struct Chosen {
  IntOf<V>* ids;
  V* logits;             // −inf at sentinels
  V* scores;             // the numerators
  V* weights;            // before scaling; 0 at sentinels
  V* grads;              // backward: of the weights, times scale; 0 at sentinels
  V highest{}, total{};  // of all logits, for the softmax over all
};

template <class V>
FULGURITE_INLINE IntOf<V> are_experts(const RouteParams& p, IntOf<V> ids) {
  return (ids >= 0) & (ids < static_cast<Element<IntOf<V>>>(p.E));
}

/// Fills in scores and weights; returns what the scores were divided by.
template <class V>
V weigh_chosen(const RouteParams& p, const Chosen<V>& c) {
  using T = Element<V>;
  const bool softmax = is_softmax(p.score);
  V highest = c.highest;
  if (!is_over_all(p)) {
    highest = splat<V>(-kInfinity<T>);
    for (int64_t j = 0; j < p.K; ++j) highest = max(c.logits[j], highest);  // NaN are passed over
  }
  ExactSum<V> total;
  for (int64_t j = 0; j < p.K; ++j) {
    c.scores[j] = softmax ? exp(c.logits[j] - highest) : unary_score(p.score, c.logits[j]);
    total.add(c.scores[j]);
  }
  V divisor = splat<V>(T(1));
  if (is_over_all(p))
    divisor = c.total;
  else if (softmax)
    divisor = total.value();
  else if (p.renormalize)
    divisor = total.value() + static_cast<T>(p.eps);
  for (int64_t j = 0; j < p.K; ++j)
    c.weights[j] = are_experts<V>(p, c.ids[j]) ? c.scores[j] / divisor : V{};
  return divisor;
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
