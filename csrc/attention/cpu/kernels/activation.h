// Scores that are not normalised: out = Σ a(s)·v with
//   relu2    a = g·relu(s)²                         a' = 2g·relu(s)
//   laplace  a = g·½(1 + erf((s − √½)·√(2π)))       a' = g·√2·exp(−2π(s − √½)²)          g = score_scale
// Both are 0 at a hidden pair, whose score is −inf.
#pragma once

#include "attention/cpu/kernels/params.h"
#include "simd/math.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

inline constexpr double kSqrtHalf = 0.70710678118654752440, kSqrtTwoPi = 2.50662827463100050242;

template <class V>
FULGURITE_INLINE V activation(const AttentionParams& p, V s) {
  using T = Element<V>;
  const T g = static_cast<T>(p.score_scale);
  if (p.score == ScoreKind::kRelu2) {
    const V positive = max(V{}, s);  // keeps a NaN
    return g * positive * positive;
  }
  return g * (T(0.5) * (1 + erf((s - T(kSqrtHalf)) * T(kSqrtTwoPi))));
}

template <class V>
FULGURITE_INLINE V activation_slope(const AttentionParams& p, V s) {
  using T = Element<V>;
  const T g = static_cast<T>(p.score_scale);
  if (p.score == ScoreKind::kRelu2) return 2 * g * max(V{}, s);
  const V u = (s - T(kSqrtHalf)) * T(kSqrtTwoPi);
  return g * T(2 * kSqrtHalf) * exp(-(u * u));
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
