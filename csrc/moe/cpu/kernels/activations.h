// The activations of the experts (rules/activations.h), as precise as products in E need them.
#pragma once

#include "moe/rules/activations.h"
#include "simd/microkernel.h"
#include "simd/rule_math.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

template <class E>
struct ActivationMath : VectorMath {
  template <class V>
  FULGURITE_INLINE static V sigmoid(V x) {
    if constexpr (kStep<E> == 1) return 1 / (1 + VectorMath::exp(-x));
    const V exponent = VectorMath::min(splat<V>(127), x * Element<V>(-1.4426950408889634));
    return 1 / (1 + exp2_rough(exponent));
  }
};

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
