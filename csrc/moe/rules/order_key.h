// Integers in the order of the numbers: comparing those, every machine decides alike. V: common/value.h.
#pragma once

#include "common/value.h"
#include "moe/rules/choices.h"

namespace fulgurite {

/// Below every number's: taken or masked.
template <class T>
inline constexpr Integer<T> kOut =
    sizeof(T) == 8 ? static_cast<Integer<T>>(INT64_MIN) : static_cast<Integer<T>>(INT32_MIN);

/// NaN's: below −inf's, and so far above kOut that what ranks by the upper bits alone tells them apart.
template <class T>
inline constexpr Integer<T> kNanKey =
    kOut<T> +
    (sizeof(T) == 8 ? static_cast<Integer<T>>((int64_t{1} << 40) - 1) : Integer<T>((1 << 20) - 1));

/// −0 equals 0, NaN lies below −inf.
template <class V>
FULGURITE_HOST_DEVICE Integer<V> order_key(V x) {
  using T = Number<V>;
  using I = Integer<V>;
  const I bits = same_bits<I>(x + T(0));
  const I key = bits < 0 ? bits ^ ~kOut<T> : bits;
  return x == x ? key : uniform<I>(kNanKey<T>);
}

/// The number that has this key; those below −inf's are NaN's.
template <class V>
FULGURITE_HOST_DEVICE V number_of(Integer<V> key) {
  return same_bits<V>(key < 0 ? key ^ ~kOut<Number<V>> : key);
}

/// The key of a group of experts from those of its members: of their best, or of the sum of their best two (of one, if
/// it has one).
template <class V>
FULGURITE_HOST_DEVICE Integer<V> group_key(const Integer<V>* keys, int64_t members,
                                           GroupScore score) {
  using I = Integer<V>;
  I best = keys[0], second = uniform<I>(kOut<Number<V>>);
  for (int64_t e = 1; e < members; ++e) {
    const I x = keys[e], lower = x > best ? best : x;
    second = lower > second ? lower : second;
    best = x > best ? x : best;
  }
  const V largest = number_of<V>(best);
  switch (score) {
    case GroupScore::kTop2:
      return order_key(members > 1 ? largest + number_of<V>(second) : largest);
    case GroupScore::kMax: return order_key(largest);
  }
  __builtin_unreachable();
}

}  // namespace fulgurite
