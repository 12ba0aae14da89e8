// Integers in the order of the numbers: comparing those, every machine decides alike.
#pragma once

#include "simd/vec.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

template <class T>
using Key = Element<IntOf<Native<T>>>;
/// Below every number's: taken or masked.
template <class T>
inline constexpr Key<T> kOut =
    sizeof(T) == 8 ? static_cast<Key<T>>(INT64_MIN) : static_cast<Key<T>>(INT32_MIN);

/// NaN's: below −inf's, and so far above kOut that what ranks by the upper bits alone tells them apart.
template <class T>
inline constexpr Key<T> kNanKey =
    kOut<T> +
    (sizeof(T) == 8 ? static_cast<Key<T>>((int64_t{1} << 40) - 1) : Key<T>((1 << 20) - 1));

/// −0 equals 0, NaN lies below −inf.
template <class V>
FULGURITE_INLINE IntOf<V> order_key(V x) {
  using T = Element<V>;
  using I = IntOf<V>;
  const I bits = bit_cast<I>(x + T(0));
  const I key = bits < 0 ? bits ^ ~kOut<T> : bits;
  return x == x ? key : splat<I>(kNanKey<T>);
}

/// The number that has this key; those below −inf's are NaN's.
template <class V>
FULGURITE_INLINE V number_of(IntOf<V> key) {
  return bit_cast<V>(key < 0 ? key ^ ~kOut<Element<V>> : key);
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
