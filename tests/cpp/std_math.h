// What rules (csrc/common/value.h) compute by on plain numbers: the C library.
#pragma once

#include <cmath>

namespace fulgurite {

struct StdMath {
  template <class T>
  static T exp(T x) {
    return std::exp(x);
  }
  template <class T>
  static T erf(T x) {
    return std::erf(x);
  }
  template <class T>
  static T sigmoid(T x) {
    return 1 / (1 + std::exp(-x));
  }
  template <class T>
  static T sqrt(T x) {
    return std::sqrt(x);
  }
  template <class T>
  static T abs(T x) {
    return std::fabs(x);
  }
  template <class T>
  static T max(T a, T b) {
    return a > b ? a : b;
  }
  template <class T>
  static T min(T a, T b) {
    return a < b ? a : b;
  }
  template <class T>
  static T fma(T a, T b, T c) {
    return std::fma(a, b, c);
  }
  template <class T>
  static T madd(T a, T b, T c) {
    return std::fma(a, b, c);
  }
};

/// The derivative of f at x by differences.
template <class F>
double slope_of(const F& f, double x) {
  const double h = 1e-3;
  return (f(x - 2 * h) - 8 * f(x - h) + 8 * f(x + h) - f(x + 2 * h)) / (12 * h);
}

}  // namespace fulgurite
