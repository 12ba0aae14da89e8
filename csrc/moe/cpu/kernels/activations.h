// The activations of the experts, as precise as products in E need them. An activation has
//
//   value(g)    a(g)
//   curve(g)    a(g) and a'(g)
//   up(u)       what the value is multiplied with where the experts are gated
//   through_up(d, u)    d·up'(u)
//
// Clamps and comparisons let NaN through.
#pragma once

#include "moe/cpu/kernels/experts_params.h"
#include "simd/math.h"
#include "simd/microkernel.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

template <class V>
struct Curve {
  V value, slope;
};

/// σ(x).
template <class E, class V>
FULGURITE_INLINE V sigmoid_for(V x) {
  if constexpr (kStep<E> == 1) return 1 / (1 + exp(-x));
  const V exponent = min(splat<V>(127), x * Element<V>(-1.4426950408889634));
  return 1 / (1 + exp2_rough(exponent));
}

/// x within ±bound.
template <class V>
FULGURITE_INLINE V clamp(V x, Element<V> bound) {
  return max(splat<V>(-bound), min(splat<V>(bound), x));
}

struct UpAsItIs {
  template <class V>
  FULGURITE_INLINE V up(V u) const {
    return u;
  }
  template <class V>
  FULGURITE_INLINE V through_up(V d, V) const {
    return d;
  }
};

/// g·σ(g)
struct Silu : UpAsItIs {
  template <class E, class V>
  FULGURITE_INLINE V value(V g) const {
    return g * sigmoid_for<E>(g);
  }
  template <class E, class V>
  FULGURITE_INLINE Curve<V> curve(V g) const {
    const V sigmoid = sigmoid_for<E>(g), a = g * sigmoid;
    return {a, sigmoid + a * (Element<V>(1) - sigmoid)};
  }
};

/// g·Φ(g), Φ(g) = ½(1 + erf(g/√2)); the slope is Φ + g·φ(g)
struct Gelu : UpAsItIs {
  template <class V>
  FULGURITE_INLINE static V cumulative(V g) {
    return madd(erf(g * Element<V>(0.7071067811865476)), splat<V>(Element<V>(0.5)),
                splat<V>(Element<V>(0.5)));
  }
  template <class E, class V>
  FULGURITE_INLINE V value(V g) const {
    return g * cumulative(g);
  }
  template <class E, class V>
  FULGURITE_INLINE Curve<V> curve(V g) const {
    using T = Element<V>;
    const V near = clamp(g, T(40));  // φ is 0 beyond
    const V density = exp(near * near * T(-0.5)) * T(0.3989422804014327);
    const V phi = cumulative(g);
    return {g * phi, madd(near, density, phi)};
  }
};

/// ½g(1 + tanh z) = g·σ(2z), z = √(2/π)·(g + 0.044715·g³)
struct GeluTanh : UpAsItIs {
  static constexpr double kTwice = 1.5957691216057308, kCube = 0.044715;  // 2√(2/π)

  template <class E, class V>
  FULGURITE_INLINE V value(V g) const {
    return g * sigmoid_for<E>(twice_z(within(g)));
  }
  template <class E, class V>
  FULGURITE_INLINE Curve<V> curve(V g) const {
    using T = Element<V>;
    const V near = within(g), sigmoid = sigmoid_for<E>(twice_z(near));
    const V slope_of_z = madd(near * near, splat<V>(T(3 * kCube * kTwice)), splat<V>(T(kTwice)));
    return {g * sigmoid, madd(near * slope_of_z, sigmoid * (T(1) - sigmoid), sigmoid)};
  }

 private:
  template <class V>
  FULGURITE_INLINE static V within(V g) {
    return clamp(g, Element<V>(30));  // σ(2z) is 0 or 1 beyond, and the cube must not overflow
  }
  template <class V>
  FULGURITE_INLINE static V twice_z(V g) {
    using T = Element<V>;
    return g * madd(g * g, splat<V>(T(kCube * kTwice)), splat<V>(T(kTwice)));
  }
};

/// max(g, 0)
struct Relu : UpAsItIs {
  template <class E, class V>
  FULGURITE_INLINE V value(V g) const {
    return select(g <= 0, V{}, g);
  }
  template <class E, class V>
  FULGURITE_INLINE Curve<V> curve(V g) const {
    return {value<E>(g), select(g <= 0, V{}, splat<V>(1))};
  }
};

/// max(g, 0)²
struct Relu2 : UpAsItIs {
  template <class E, class V>
  FULGURITE_INLINE V value(V g) const {
    const V positive = select(g <= 0, V{}, g);
    return positive * positive;
  }
  template <class E, class V>
  FULGURITE_INLINE Curve<V> curve(V g) const {
    const V positive = select(g <= 0, V{}, g);
    return {positive * positive, positive + positive};
  }
};

/// g·σ(α·g) of a gate clamped from above, times up + 1 of an up clamped on both sides. What is clamped has slope 0.
struct SwigluOai {
  double alpha, limit;  // no limit: infinity

  explicit SwigluOai(const HiddenParams& p)
      : alpha(p.alpha), limit(p.limit > 0 ? p.limit : __builtin_inf()) {}

  template <class E, class V>
  FULGURITE_INLINE V value(V g) const {
    using T = Element<V>;
    const V below = min(splat<V>(T(limit)), g);
    return below * sigmoid_for<E>(below * T(alpha));
  }
  template <class E, class V>
  FULGURITE_INLINE Curve<V> curve(V g) const {
    using T = Element<V>;
    const V below = min(splat<V>(T(limit)), g);
    const V sigmoid = sigmoid_for<E>(below * T(alpha)), a = below * sigmoid;
    const V slope = madd(a * T(alpha), T(1) - sigmoid, sigmoid);
    return {a, select(g > T(limit), V{}, slope)};
  }
  template <class V>
  FULGURITE_INLINE V up(V u) const {
    return clamp(u, Element<V>(limit)) + Element<V>(1);
  }
  template <class V>
  FULGURITE_INLINE V through_up(V d, V u) const {
    return select(abs(u) > Element<V>(limit), V{}, d);
  }
};

/// Runs visitor(activation).
template <class Visitor>
FULGURITE_INLINE void with_activation(const HiddenParams& p, const Visitor& visitor) {
  switch (p.activation) {
    case Activation::kSilu: return visitor(Silu{});
    case Activation::kGelu: return visitor(Gelu{});
    case Activation::kGeluTanh: return visitor(GeluTanh{});
    case Activation::kRelu: return visitor(Relu{});
    case Activation::kRelu2: return visitor(Relu2{});
    case Activation::kSwigluOai: return visitor(SwigluOai(p));
  }
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
