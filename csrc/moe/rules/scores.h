// What a router makes of a logit x on its own, and the slope of that. V and Math: common/value.h.
//
//   sigmoid         s = σ(x)                  s' = s(1 − s)
//   sqrtsoftplus    s = √(log(1 + e^x))       s' = σ(x)/(2s)
//   softmax kinds   s = x: the softmax is taken of it, and it is in the softmax's order
#pragma once

#include "common/value.h"
#include "moe/rules/choices.h"

namespace fulgurite {

FULGURITE_HOST_DEVICE bool is_softmax(Score score) {
  switch (score) {
    case Score::kSoftmax:
    case Score::kSoftmaxTopk: return true;
    case Score::kSigmoid:
    case Score::kSqrtSoftplus: return false;
  }
  __builtin_unreachable();
}

/// log(1 + y) for 0 ≤ y ≤ 1 by 2·artanh(z) = 2z·(1 + z²/3 + z⁴/5 + …), z = y/(2 + y) ≤ 1/3; the rest of the series is below
/// half a unit in the last place.
template <class Math, class V>
FULGURITE_HOST_DEVICE V log1p_unit(V y) {
  using T = Number<V>;
  constexpr int kTerms = sizeof(T) == 8 ? 18 : 9;
  const V z = y / (y + T(2)), zz = z * z;
  V series = uniform<V>(T(1) / (2 * kTerms - 1));
  for (int n = kTerms - 2; n > 0; --n)
    series = Math::fma(series, zz, uniform<V>(T(1) / (2 * n + 1)));
  return Math::fma(series * zz, z, z) * T(2);
}

/// Below this x, log(1 + e^x) is e^x to the last bit: √softplus = e^(x/2), which does not vanish
/// before the gradient does.
template <class T>
inline constexpr T kSoftplusTail = sizeof(T) == 8 ? T(-40) : T(-20);

template <class Math, class V>
FULGURITE_HOST_DEVICE V sqrt_softplus(V x) {
  using T = Number<V>;
  const V softplus = Math::max(x, V{}) + log1p_unit<Math>(Math::exp(-Math::abs(x)));
  return x < kSoftplusTail<T> ? Math::exp(x * T(0.5)) : Math::sqrt(softplus);
}

template <class Math, class V>
FULGURITE_HOST_DEVICE V own_score(Score score, V x) {
  switch (score) {
    case Score::kSoftmax:
    case Score::kSoftmaxTopk: return x;
    case Score::kSigmoid: return Math::sigmoid(x);
    case Score::kSqrtSoftplus: return sqrt_softplus<Math>(x);
  }
  __builtin_unreachable();
}

/// From x and its score s; σ(x)/(2s) tends to s/2.
template <class Math, class V>
FULGURITE_HOST_DEVICE V own_score_slope(Score score, V x, V s) {
  using T = Number<V>;
  switch (score) {
    case Score::kSoftmax:
    case Score::kSoftmaxTopk: return uniform<V>(1);
    case Score::kSigmoid: return s * (T(1) - s);
    case Score::kSqrtSoftplus:
      return x < kSoftplusTail<T> ? s * T(0.5) : Math::sigmoid(x) / (s * T(2));
  }
  __builtin_unreachable();
}

}  // namespace fulgurite
