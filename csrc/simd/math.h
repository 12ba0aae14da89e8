// Elementary functions on vectors, each a fixed sequence of fma: the same bits on every instruction set.
// Polynomials are least-maximum fits; tests/cpp/simd/math_test.cpp measures the bounds stated here.
#pragma once

#include "simd/vec.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float kLowest = -105.f, kHighest = 89.f;   // beyond: 0 and infinity
  static constexpr float kRound = 12582912.f;                 // 1.5·2^23: adding it rounds to an integer
  static constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr int kMantissa = 23, kBias = 127;
  // (exp(r) − 1 − r)/r² on |r| ≤ ln2/2, relative error of exp 5.2e-11
  static constexpr float kPoly[] = {5.000000068e-01f, 1.666666587e-01f, 4.166629509e-02f,
                                    8.333497008e-03f, 1.394464869e-03f, 1.979035264e-04f};
};
template <>
struct ExpConstants<double> {
  static constexpr double kLowest = -746., kHighest = 710.;
  static constexpr double kRound = 6755399441055744.;  // 1.5·2^52
  static constexpr double kLn2High = 0x1.62e42fefa0000p-1, kLn2Low = 0x1.cf79abc9e3b39p-40;
  static constexpr int kMantissa = 52, kBias = 1023;
  // 1/n!, n = 2 … 14: the next term is below 2^-60
  static constexpr double kPoly[] = {1. / 2, 1. / 6, 1. / 24, 1. / 120, 1. / 720, 1. / 5040, 1. / 40320, 1. / 362880, 1. / 3628800,
                                     1. / 39916800, 1. / 479001600, 1. / 6227020800., 1. / 87178291200.};
};

/// c[0] + c[1]·x + … by Horner's rule.
template <class V, class T, int N>
FULGURITE_INLINE V polynomial(V x, const T (&c)[N]) {
  V p = splat<V>(c[N - 1]);
  for (int i = N - 2; i >= 0; --i) p = fma(p, x, splat<V>(c[i]));
  return p;
}

/// 2^n for integers n held in a float vector, |n| < bias.
template <class V>
FULGURITE_INLINE V power_of_two(V n) {
  using K = ExpConstants<Element<V>>;
  using I = IntOf<V>;
  return bit_cast<V>((__builtin_convertvector(n, I) + K::kBias) << K::kMantissa);
}

/// exp(r)·2^n for |r| ≤ ln2/2. Two factors, so that subnormal results are rounded once and overflow gives infinity.
template <class V>
FULGURITE_INLINE V exp_scaled(V r, V n) {
  using K = ExpConstants<Element<V>>;
  const V p = fma(r * r, polynomial(r, K::kPoly), r) + Element<V>(1);
  const V half = (n * Element<V>(0.5) + K::kRound) - K::kRound;
  return p * power_of_two(half) * power_of_two(n - half);
}

/// e^x within 1 ulp (float32: 2 ulp when the result is subnormal); exp(−inf) = 0, exp(inf) = inf, NaN stays.
template <class V>
FULGURITE_INLINE V exp(V x) {
  using K = ExpConstants<Element<V>>;
  x = max(splat<V>(K::kLowest), min(splat<V>(K::kHighest), x));  // this order of operands lets a NaN through
  const V n = fma(x, splat<V>(Element<V>(1.4426950408889634)), splat<V>(K::kRound)) - K::kRound;
  V r = fma(n, splat<V>(-K::kLn2High), x);
  r = fma(n, splat<V>(-K::kLn2Low), r);
  const V y = exp_scaled(r, n);
  return x == x ? y : x;
}

/// 2^x, same bounds as exp.
template <class V>
FULGURITE_INLINE V exp2(V x) {
  using K = ExpConstants<Element<V>>;
  constexpr Element<V> kLowest = K::kBias == 127 ? -151 : -1076, kHighest = K::kBias + 1;
  x = max(splat<V>(kLowest), min(splat<V>(kHighest), x));
  const V n = (x + K::kRound) - K::kRound;
  const V y = exp_scaled((x - n) * Element<V>(0.6931471805599453), n);
  return x == x ? y : x;
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
