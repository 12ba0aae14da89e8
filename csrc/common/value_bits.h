// The bits of the numbers that rules compute with (common/value.h), and numbers of other types.
#pragma once

#include "common/value.h"

namespace fulgurite {

template <class V, bool kIsNumber = std::is_arithmetic_v<V>>
struct UnsignedOf {
  using type = std::make_unsigned_t<Integer<V>>;
};
template <class V>
struct UnsignedOf<V, false> {
  typedef std::make_unsigned_t<Integer<Number<V>>> type __attribute__((vector_size(sizeof(V))));
};
/// Integers of V's width, without a sign.
template <class V>
using Unsigned = typename UnsignedOf<V>::type;

/// The number itself in another type, cut off in integers.
template <class To, class From>
FULGURITE_HOST_DEVICE To converted(From from) {
#if !defined(__CUDACC__)
  if constexpr (!std::is_arithmetic_v<To>)
    return __builtin_convertvector(from, To);
  else
#endif
    return static_cast<To>(from);
}

}  // namespace fulgurite
