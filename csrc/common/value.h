// The numbers that rules (csrc/<family>/rules) compute with: V is a number, or a GNU vector with one in each lane. + - * /,
// comparisons and ?: are the language's own for both.
//
// What each device computes in its own way comes as Math, a struct of static functions of V: exp, erf, sigmoid, sqrt, abs;
// fma(a, b, c), rounded once; madd(a, b, c), fused or not; max(a, b) = a > b ? a : b and min(a, b) = a < b ? a : b, so b where
// either is NaN.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/host_device.h"

namespace fulgurite {

template <class V, bool kIsNumber = std::is_arithmetic_v<V>>
struct ValueTraits {
  using Number = V;
  using Integer = std::conditional_t<sizeof(V) == 8, int64_t, int32_t>;
};
template <class V>
struct ValueTraits<V, false> {
  using Number = std::remove_reference_t<decltype((*static_cast<V*>(nullptr))[0])>;
  typedef typename ValueTraits<Number>::Integer Integer __attribute__((vector_size(sizeof(V))));
};
/// A lane of V.
template <class V>
using Number = typename ValueTraits<V>::Number;
/// Integers of V's width.
template <class V>
using Integer = typename ValueTraits<V>::Integer;

/// x in every lane.
template <class V>
FULGURITE_HOST_DEVICE V uniform(Number<V> x) {
  return x - V{};  // not V{} + x: that would turn −0 into 0, so the compiler could not drop it
}

template <class To, class From>
FULGURITE_HOST_DEVICE To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace fulgurite
