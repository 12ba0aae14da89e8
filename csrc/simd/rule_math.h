// What rules (common/value.h) compute by on vectors.
#pragma once

#include "common/value.h"
#include "simd/math.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

static_assert(std::is_same_v<Integer<Native<float>>, IntOf<Native<float>>> &&
              std::is_same_v<Integer<Native<double>>, IntOf<Native<double>>>);

struct VectorMath {
  template <class V>
  FULGURITE_INLINE static V exp(V x) {
    return FULGURITE_VARIANT::exp(x);
  }
  template <class V>
  FULGURITE_INLINE static V erf(V x) {
    return FULGURITE_VARIANT::erf(x);
  }
  template <class V>
  FULGURITE_INLINE static V sigmoid(V x) {
    return FULGURITE_VARIANT::sigmoid(x);
  }
  template <class V>
  FULGURITE_INLINE static V sqrt(V x) {
    return FULGURITE_VARIANT::sqrt(x);
  }
  template <class V>
  FULGURITE_INLINE static V abs(V x) {
    return FULGURITE_VARIANT::abs(x);
  }
  template <class V>
  FULGURITE_INLINE static V max(V a, V b) {
    return FULGURITE_VARIANT::max(a, b);
  }
  template <class V>
  FULGURITE_INLINE static V min(V a, V b) {
    return FULGURITE_VARIANT::min(a, b);
  }
  template <class V>
  FULGURITE_INLINE static V fma(V a, V b, V c) {
    return FULGURITE_VARIANT::fma(a, b, c);
  }
  template <class V>
  FULGURITE_INLINE static V madd(V a, V b, V c) {
    return FULGURITE_VARIANT::madd(a, b, c);
  }
};

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
