// x·σ(x), the activation of experts, convolutions and gates. V and Math: common/value.h.
#pragma once

#include "common/value.h"

namespace fulgurite {

/// A function's value and its derivative there.
template <class V>
struct Curve {
  V value, slope;
};

struct SiluRule {
  template <class Math, class V>
  FULGURITE_HOST_DEVICE V value(V g) const {
    return g * Math::sigmoid(g);
  }
  template <class Math, class V>
  FULGURITE_HOST_DEVICE Curve<V> curve(V g) const {
    const V sigmoid = Math::sigmoid(g), a = g * sigmoid;
    return {a, sigmoid + a * (Number<V>(1) - sigmoid)};
  }
};

}  // namespace fulgurite
