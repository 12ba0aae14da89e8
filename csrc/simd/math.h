// Elementary functions on vectors, each a fixed sequence of fma, division and selection: the same bits on every
// instruction set and at every width. Vectors of float32 and of float64 alike.
//
// Largest errors in units in the last place, as tests/cpp/simd/math_test.cpp measures and asserts them (docs/internals/simd.md):
//            exp   exp_flushed   exp2   log   tanh   erf   sigmoid
//   float32  1.0   1.1           1.0    0.9   1.5    1.2   2.2       where the result is subnormal, 0.8 for all
//   float64  1.0   1.0           1.1    0.9   1.5    1.2   2.2
// Polynomials are least-maximum fits (scripts/fit_polynomials.py). NaN in, NaN out.
#pragma once

#include "simd/vec.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// c[0] + c[1]·x + … by Horner's rule.
template <class V, class T, int N>
FULGURITE_INLINE V polynomial(V x, const T (&c)[N]) {
  V p = splat<V>(c[N - 1]);
#pragma GCC unroll 24
  for (int i = N - 2; i >= 0; --i) p = fma(p, x, splat<V>(c[i]));
  return p;
}

template <class T>
struct FloatFormat;
template <>
struct FloatFormat<float> {
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr float kRound =
      12582912.f;  // 1.5·2^23: adding it rounds to an integer, held in the lowest bits
  static constexpr int32_t kRoundBits = 0x4b400000;
  static constexpr float kSmallestNormal = 0x1p-126f;
};
template <>
struct FloatFormat<double> {
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr double kRound = 6755399441055744.;  // 1.5·2^52
  static constexpr int64_t kRoundBits = 0x4338000000000000;
  static constexpr double kSmallestNormal = 0x1p-1022;
};

/// 2^n for integers n held in a float vector, |n| < bias. The sum's lowest bits are n; the shift drops the others. (A
/// conversion to int64 has no AVX2 instruction.)
template <class V>
FULGURITE_INLINE V power_of_two(V n) {
  using F = FloatFormat<Element<V>>;
  return bit_cast<V>((bit_cast<IntOf<V>>(n + F::kRound) + F::kBias) << F::kMantissa);
}

// ---- exp ------------------------------------------------------------------------------------------------------------

template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float kLowest = -105.f, kHighest = 89.f;  // beyond: 0 and infinity
  static constexpr float kLowest2 = -151.f, kHighest2 = 128.f;
  static constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
  // (exp(r) − 1 − r)/r² on |r| ≤ ln2/2, relative error of exp 5.2e-11
  static constexpr float kPoly[] = {5.000000068e-1f, 1.666666587e-1f, 4.166629514e-2f,
                                    8.333497276e-3f, 1.394464702e-3f, 1.979021912e-4f};
};
template <>
struct ExpConstants<double> {
  static constexpr double kLowest = -746., kHighest = 710.;
  static constexpr double kLowest2 = -1076., kHighest2 = 1024.;
  static constexpr double kLn2High = 0x1.62e42fefa0000p-1, kLn2Low = 0x1.cf79abc9e3b39p-40;
  // 1/n!, n = 2 … 14: the next term is below 2^-60
  static constexpr double kPoly[] = {
      1. / 2,         1. / 6,           1. / 24,          1. / 120,     1. / 720,
      1. / 5040,      1. / 40320,       1. / 362880,      1. / 3628800, 1. / 39916800,
      1. / 479001600, 1. / 6227020800., 1. / 87178291200.};
};

/// exp(r)·2^n for |r| ≤ ln2/2. Two factors, so that subnormal results are rounded once and overflow gives infinity.
template <class V>
FULGURITE_INLINE V exp_scaled(V r, V n) {
  using F = FloatFormat<Element<V>>;
  const V p = fma(r * r, polynomial(r, ExpConstants<Element<V>>::kPoly), r) + Element<V>(1);
  const V half = (n * Element<V>(0.5) + F::kRound) - F::kRound;
  return p * power_of_two(half) * power_of_two(n - half);
}

/// e^x; exp(−inf) = 0, exp(inf) = inf.
template <class V>
FULGURITE_INLINE V exp(V x) {
  using K = ExpConstants<Element<V>>;
  using F = FloatFormat<Element<V>>;
  x = max(splat<V>(K::kLowest),
          min(splat<V>(K::kHighest), x));  // this order of operands lets a NaN through
  const V n = fma(x, splat<V>(Element<V>(1.4426950408889634)), splat<V>(F::kRound)) - F::kRound;
  V r = fma(n, splat<V>(-K::kLn2High), x);
  r = fma(n, splat<V>(-K::kLn2Low), r);
  return exp_scaled(r, n);
}

/// 2^x.
template <class V>
FULGURITE_INLINE V exp2(V x) {
  using K = ExpConstants<Element<V>>;
  using F = FloatFormat<Element<V>>;
  x = max(splat<V>(K::kLowest2), min(splat<V>(K::kHighest2), x));
  const V n = (x + F::kRound) - F::kRound;
  return exp_scaled((x - n) * Element<V>(0.6931471805599453), n);
}

template <class T>
struct ExpFlushedConstants;
template <>
struct ExpFlushedConstants<float> {
  static constexpr float kLowest = -88.f;  // n = −127: a factor of 0
  // (exp(r) − 1)/r on |r| ≤ ln2/2, relative error of exp 2.0e-9
  static constexpr float kPoly[] = {1.000000032f,    4.999999414e-1f, 1.666643133e-1f,
                                    4.166801511e-2f, 8.374156011e-3f, 1.384303573e-3f};
};
template <>
struct ExpFlushedConstants<double> {
  static constexpr double kLowest = -709.;
};

/// e^x for x < 88, and 0 below 2^−126.5 (2^−1022.5): probabilities. 16 instructions for float32, where exp has 25.
template <class V>
FULGURITE_INLINE V exp_flushed(V x) {
  using T = Element<V>;
  using K = ExpFlushedConstants<T>;
  using F = FloatFormat<T>;
  const V low = max(splat<V>(K::kLowest), x);  // lets a NaN through
  const V shifted = fma(low, splat<V>(T(1.4426950408889634)), splat<V>(F::kRound));
  const V n = shifted - F::kRound;
  V r = fma(n, splat<V>(-ExpConstants<T>::kLn2High), low);
  r = fma(n, splat<V>(-ExpConstants<T>::kLn2Low), r);
  V p;
  if constexpr (sizeof(T) == 4)
    p = fma(r, polynomial(r, K::kPoly), splat<V>(1));
  else
    p = fma(r * r, polynomial(r, ExpConstants<T>::kPoly), r) + T(1);
  return p * bit_cast<V>((bit_cast<IntOf<V>>(shifted) + F::kBias) << F::kMantissa);
}

/// 2^x for x < 127.5 to a relative error of 2.9e-6, and 0 below 2^−126.5: probabilities that bfloat16 will round. 11
/// instructions.
template <class V>
FULGURITE_INLINE V exp2_rough(V x) {
  using F = FloatFormat<float>;
  // (2^r − 1)/r on |r| ≤ ½
  constexpr float kPoly[] = {6.931241884e-1f, 2.402409923e-1f, 5.590645453e-2f, 9.582834766e-3f};
  const V low = max(splat<V>(-127.f), x);  // lets a NaN through
  const V shifted = low + F::kRound;
  const V r = low - (shifted - F::kRound);
  const V p = fma(r, polynomial(r, kPoly), splat<V>(1));
  return p * bit_cast<V>((bit_cast<IntOf<V>>(shifted) + F::kBias) << F::kMantissa);
}

/// 1/(1 + e^−x), relative error bounded on both sides: e^−|x| never overflows.
template <class V>
FULGURITE_INLINE V sigmoid(V x) {
  const V e = exp(-abs(x));
  return (x < 0 ? e : splat<V>(1)) / (e + Element<V>(1));
}

/// x·sigmoid(x).
template <class V>
FULGURITE_INLINE V silu(V x) {
  return x * sigmoid(x);
}

// ---- log ------------------------------------------------------------------------------------------------------------

template <class T>
struct LogConstants;
template <>
struct LogConstants<float> {
  static constexpr int32_t kRootHalfBits = 0x3f3504f3;  // √½
  static constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
  // (log(1+f) − f)/f² on √½ − 1 ≤ f ≤ √2 − 1, relative error of log 4.2e-9
  static constexpr float kPoly[] = {-4.999998816e-1f, 3.333332421e-1f,  -2.500159886e-1f,
                                    2.000208985e-1f,  -1.660879065e-1f, 1.417920913e-1f,
                                    -1.324270061e-1f, 1.29222448e-1f,   -7.645432974e-2f};
};
template <>
struct LogConstants<double> {
  static constexpr int64_t kRootHalfBits = 0x3fe6a09e667f3bcd;
  static constexpr double kLn2High = 0x1.62e42fefa0000p-1, kLn2Low = 0x1.cf79abc9e3b39p-40;
  // (log((1+s)/(1−s))/s − 2)/s² in s² for s = f/(2+f), |s| ≤ 0.1716, relative error of log 1.3e-18
  static constexpr double kPoly[] = {6.6666666666667343819e-1, 3.9999999999414853394e-1,
                                     2.8571428742354091543e-1, 2.2222198576010581554e-1,
                                     1.8183564210912644003e-1, 1.5314052752984848276e-1,
                                     1.4795934307676198555e-1};
};

/// log(1+f) − f + low: the small part of a logarithm.
template <class V>
FULGURITE_INLINE V log_tail(V f, V low) {
  if constexpr (sizeof(Element<V>) == 4) {
    return fma(f * f, polynomial(f, LogConstants<float>::kPoly), low);
  } else {  // 2·atanh(s) converges where a polynomial in f would need twenty terms
    const V s = f / (f + Element<V>(2)), z = s * s;
    return fma(-s, f - z * polynomial(z, LogConstants<double>::kPoly), low);
  }
}

/// Natural logarithm: x = 2^e·(1+f) with 1+f in [√½, √2), log x = e·ln2 + f + (log(1+f) − f), the first sum with its
/// rounding error. log(±0) = −inf, log(inf) = inf, log(x < 0) = NaN; subnormal x are as exact as others.
template <class V>
FULGURITE_INLINE V log(V x) {
  using T = Element<V>;
  using I = IntOf<V>;
  using K = LogConstants<T>;
  using F = FloatFormat<T>;
  constexpr T kInfinity = static_cast<T>(__builtin_inf());
  constexpr T kScale = T(int64_t{1} << F::kMantissa);
  const I tiny = x < F::kSmallestNormal;
  const I bits = bit_cast<I>(tiny ? x * kScale : x);
  // wrapping: x < 0 goes through here too, before it becomes NaN
  const I e_bits = subtract_wrapping(bits, I{} + K::kRootHalfBits) >> F::kMantissa;
  const V f = bit_cast<V>(subtract_wrapping(bits, e_bits << F::kMantissa)) - T(1);
  const V e = bit_cast<V>(e_bits - (tiny & F::kMantissa) + F::kRoundBits) - F::kRound;
  const V high = e * K::kLn2High;  // exact: kLn2High ends in enough zeros
  const V sum = high + f;
  const V rounding = f - (sum - high);
  const V y = sum + (rounding + log_tail(f, e * K::kLn2Low));
  const V special = x == 0 ? splat<V>(-kInfinity)
                           : (x == kInfinity ? x : splat<V>(static_cast<T>(__builtin_nan(""))));
  return ((x > 0) & (x < kInfinity)) ? y : special;
}

// ---- tanh, erf: odd functions, a polynomial near 0 and 1 − something small beyond ------------------------------------------

template <class T>
struct TanhConstants;
template <>
struct TanhConstants<float> {
  // (tanh(x)/x − 1)/x² in x² on |x| ≤ 0.55, relative error of tanh 1.0e-9
  static constexpr float kPoly[] = {-3.333331808e-1f, 1.33326025e-1f, -5.385391354e-2f,
                                    2.107789561e-2f, -6.282572335e-3f};
};
template <>
struct TanhConstants<double> {
  // the same, 5.5e-19
  static constexpr double kPoly[] = {
      -3.3333333333333299749e-1, 1.3333333333326834557e-1,  -5.3968253963879264483e-2,
      2.18694883891188764e-2,    -8.8632326530156165665e-3, 3.5920925346737812961e-3,
      -1.4555459972097733281e-3, 5.8845710154010361808e-4,  -2.3341285923829581511e-4,
      8.3360253549669060653e-5,  -1.9521139612249492235e-5};
};

/// tanh x = x + x³·P(x²) up to 0.55, else ±(1 − 2/(e^2|x| + 1)).
template <class V>
FULGURITE_INLINE V tanh(V x) {
  using T = Element<V>;
  const V a = abs(x), z = x * x;
  const V near = fma(x * z, polynomial(z, TanhConstants<T>::kPoly), x);
  const V far = T(1) - T(2) / (exp(a + a) + T(1));
  return copysign(a <= T(0.55) ? near : far, x);  // also for −0
}

template <class T>
struct ErfConstants;
template <>
struct ErfConstants<float> {
  static constexpr float kSwitch = 0.92f, kOne = 3.93f;  // from kOne on, erf rounds to 1
  // erf(x)/x − 1 in x² on |x| ≤ kSwitch, error 4.0e-10
  static constexpr float kNear[] = {1.283791667e-1f, -3.76126343e-1f, 1.128370333e-1f,
                                    -2.6859799e-2f,  5.201960776e-3f, -8.152630637e-4f,
                                    8.409921364e-5f};
  // log(1 − erf(x)) on [kSwitch, kOne], relative error of erf 4.6e-11
  static constexpr float kFar[] = {1.746858917e-4f,  -1.129514938f,   -6.333468904e-1f,
                                   -1.082801086e-1f, 2.51194413e-2f,  -4.17106903e-3f,
                                   4.344640355e-4f,  -2.109519139e-5f};
};
template <>
struct ErfConstants<double> {
  static constexpr double kSwitch = 1, kOne = 5.93;
  // error 1.3e-19
  static constexpr double kNear[] = {
      1.2837916709551257377e-1,  -3.7612638903183748178e-1, 1.1283791670954884473e-1,
      -2.6866170645077875148e-2, 5.2239776248284306696e-3,  -8.5483269814255420875e-4,
      1.2055331132955819588e-4,  -1.4925595772180905342e-5, 1.6461008477802701324e-6,
      -1.6350396222864616262e-7, 1.4660328722742259544e-8,  -1.1374955736070149599e-9,
      5.9606853385209710332e-11};
  // relative error of erf 1.8e-19
  static constexpr double kFar[] = {
      -2.77890461779901714e-8,   -1.1283789158539099062,    -6.3662073355724174289e-1,
      -1.0277081755071159957e-1, 1.9128048427398849488e-2,  2.0229923257858211235e-4,
      -1.674958818540012242e-3,  5.5235438337536271889e-4,  2.2013382241869454679e-5,
      -1.1078723297037440839e-4, 6.47629507398856506e-5,    -2.4280971371705720942e-5,
      6.7843590770855453341e-6,  -1.4697524475724773903e-6, 2.4814670450355362292e-7,
      -3.2195591161339187101e-8, 3.1082440863851913532e-9,  -2.1052864560630672209e-10,
      8.9288090568593092139e-12, -1.7838504814091617755e-13};
};

/// erf x = x + x·P(x²) up to kSwitch, else ±(1 − e^Q(|x|)).
template <class V>
FULGURITE_INLINE V erf(V x) {
  using T = Element<V>;
  using K = ErfConstants<T>;
  const V a = abs(x);
  const V near = fma(x, polynomial(x * x, K::kNear), x);
  const V far = T(1) - exp(polynomial(min(splat<V>(K::kOne), a), K::kFar));
  return copysign(a <= K::kSwitch ? near : far, x);
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
