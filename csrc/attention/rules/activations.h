// Scores that are not normalised: out = Σ a(s)·v with
//   relu2    a = g·relu(s)²                         a' = 2g·relu(s)
//   laplace  a = g·½(1 + erf((s − √½)·√(2π)))       a' = g·√2·exp(−2π(s − √½)²)          g = score_scale
// Both are 0 at a hidden pair, whose score is −inf. A NaN stays. V and Math: common/value.h.
#pragma once

#include "attention/rules/choices.h"
#include "common/value.h"

namespace fulgurite {

inline constexpr double kSqrtHalf = 0.70710678118654752440, kSqrtTwoPi = 2.50662827463100050242;

/// The argument of laplace's erf.
template <class V>
FULGURITE_HOST_DEVICE V laplace_argument(V s) {
  return (s - Number<V>(kSqrtHalf)) * Number<V>(kSqrtTwoPi);
}

template <class Math, class V>
FULGURITE_HOST_DEVICE V activation(ScoreKind kind, double score_scale, V s) {
  using T = Number<V>;
  const T g = static_cast<T>(score_scale);
  switch (kind) {
    case ScoreKind::kRelu2: {
      const V positive = Math::max(V{}, s);
      return g * positive * positive;
    }
    case ScoreKind::kLaplace: return g * (T(0.5) * (T(1) + Math::erf(laplace_argument(s))));
    case ScoreKind::kSoftmax: break;  // is normalised
  }
  __builtin_unreachable();
}

template <class Math, class V>
FULGURITE_HOST_DEVICE V activation_slope(ScoreKind kind, double score_scale, V s) {
  using T = Number<V>;
  const T g = static_cast<T>(score_scale);
  switch (kind) {
    case ScoreKind::kRelu2: return T(2) * g * Math::max(V{}, s);
    case ScoreKind::kLaplace: {
      const V u = laplace_argument(s);
      return g * T(2 * kSqrtHalf) * Math::exp(-(u * u));
    }
    case ScoreKind::kSoftmax: break;
  }
  __builtin_unreachable();
}

}  // namespace fulgurite
