// The activations of the experts. One has
//
//   value(g)    a(g)
//   curve(g)    a(g) and a'(g)
//   up(u)       what the value is multiplied with where the experts are gated
//   through_up(d, u)    d·up'(u)
//
// Clamps and comparisons let NaN through. V and Math: common/value.h.
#pragma once

#include "common/silu.h"
#include "common/value.h"
#include "moe/rules/choices.h"

namespace fulgurite {

struct ActivationRule {
  Activation kind;
  double alpha, limit;  // of swiglu_oai; 0: no limit
};

/// x within ±bound.
template <class Math, class V>
FULGURITE_HOST_DEVICE V within(V x, Number<V> bound) {
  return Math::max(uniform<V>(-bound), Math::min(uniform<V>(bound), x));
}

struct UpAsItIs {
  template <class Math, class V>
  FULGURITE_HOST_DEVICE V up(V u) const {
    return u;
  }
  template <class Math, class V>
  FULGURITE_HOST_DEVICE V through_up(V d, V) const {
    return d;
  }
};

/// g·σ(g)
struct Silu : UpAsItIs, SiluRule {};

/// g·Φ(g), Φ(g) = ½(1 + erf(g/√2)); the slope is Φ + g·φ(g)
struct Gelu : UpAsItIs {
  template <class Math, class V>
  FULGURITE_HOST_DEVICE static V cumulative(V g) {
    return Math::madd(Math::erf(g * Number<V>(0.7071067811865476)), uniform<V>(Number<V>(0.5)),
                      uniform<V>(Number<V>(0.5)));
  }
  template <class Math, class V>
  FULGURITE_HOST_DEVICE V value(V g) const {
    return g * cumulative<Math>(g);
  }
  template <class Math, class V>
  FULGURITE_HOST_DEVICE Curve<V> curve(V g) const {
    using T = Number<V>;
    const V near = within<Math>(g, T(40));  // φ is 0 beyond
    const V density = Math::exp(near * near * T(-0.5)) * T(0.3989422804014327);
    const V phi = cumulative<Math>(g);
    return {g * phi, Math::madd(near, density, phi)};
  }
};

/// ½g(1 + tanh z) = g·σ(2z), z = √(2/π)·(g + 0.044715·g³)
struct GeluTanh : UpAsItIs {
  static constexpr double kTwice = 1.5957691216057308, kCube = 0.044715;  // 2√(2/π)

  template <class Math, class V>
  FULGURITE_HOST_DEVICE V value(V g) const {
    return g * Math::sigmoid(twice_z<Math>(near<Math>(g)));
  }
  template <class Math, class V>
  FULGURITE_HOST_DEVICE Curve<V> curve(V g) const {
    using T = Number<V>;
    const V x = near<Math>(g), sigmoid = Math::sigmoid(twice_z<Math>(x));
    const V slope_of_z =
        Math::madd(x * x, uniform<V>(T(3 * kCube * kTwice)), uniform<V>(T(kTwice)));
    return {g * sigmoid, Math::madd(x * slope_of_z, sigmoid * (T(1) - sigmoid), sigmoid)};
  }

 private:
  template <class Math, class V>
  FULGURITE_HOST_DEVICE static V near(V g) {
    return within<Math>(g, Number<V>(30));  // σ(2z) is 0 or 1 beyond; the cube must not overflow
  }
  template <class Math, class V>
  FULGURITE_HOST_DEVICE static V twice_z(V g) {
    using T = Number<V>;
    return g * Math::madd(g * g, uniform<V>(T(kCube * kTwice)), uniform<V>(T(kTwice)));
  }
};

/// max(g, 0)
struct Relu : UpAsItIs {
  template <class Math, class V>
  FULGURITE_HOST_DEVICE V value(V g) const {
    return g <= 0 ? V{} : g;
  }
  template <class Math, class V>
  FULGURITE_HOST_DEVICE Curve<V> curve(V g) const {
    return {value<Math>(g), g <= 0 ? V{} : uniform<V>(1)};
  }
};

/// max(g, 0)²
struct Relu2 : UpAsItIs {
  template <class Math, class V>
  FULGURITE_HOST_DEVICE V value(V g) const {
    const V positive = g <= 0 ? V{} : g;
    return positive * positive;
  }
  template <class Math, class V>
  FULGURITE_HOST_DEVICE Curve<V> curve(V g) const {
    const V positive = g <= 0 ? V{} : g;
    return {positive * positive, positive + positive};
  }
};

/// g·σ(α·g) of a gate clamped from above, times up + 1 of an up clamped on both sides. What is clamped has slope 0.
struct SwigluOai {
  double alpha, limit;  // no limit: infinity

  FULGURITE_HOST_DEVICE explicit SwigluOai(const ActivationRule& rule)
      : alpha(rule.alpha), limit(rule.limit > 0 ? rule.limit : __builtin_inf()) {}

  template <class Math, class V>
  FULGURITE_HOST_DEVICE V value(V g) const {
    using T = Number<V>;
    const V below = Math::min(uniform<V>(T(limit)), g);
    return below * Math::sigmoid(below * T(alpha));
  }
  template <class Math, class V>
  FULGURITE_HOST_DEVICE Curve<V> curve(V g) const {
    using T = Number<V>;
    const V below = Math::min(uniform<V>(T(limit)), g);
    const V sigmoid = Math::sigmoid(below * T(alpha)), a = below * sigmoid;
    const V slope = Math::madd(a * T(alpha), T(1) - sigmoid, sigmoid);
    return {a, g > T(limit) ? V{} : slope};
  }
  template <class Math, class V>
  FULGURITE_HOST_DEVICE V up(V u) const {
    return within<Math>(u, Number<V>(limit)) + Number<V>(1);
  }
  template <class Math, class V>
  FULGURITE_HOST_DEVICE V through_up(V d, V u) const {
    return Math::abs(u) > Number<V>(limit) ? V{} : d;
  }
};

/// Runs visitor(activation).
template <class Visitor>
FULGURITE_HOST_DEVICE void with_activation(const ActivationRule& rule, const Visitor& visitor) {
  switch (rule.kind) {
    case Activation::kSilu: return visitor(Silu{});
    case Activation::kGelu: return visitor(Gelu{});
    case Activation::kGeluTanh: return visitor(GeluTanh{});
    case Activation::kRelu: return visitor(Relu{});
    case Activation::kRelu2: return visitor(Relu2{});
    case Activation::kSwigluOai: return visitor(SwigluOai(rule));
  }
}

}  // namespace fulgurite
