// The vector layer: lane order, NaN rules, fixed trees, single rounding; at every width, whatever the set's own is.
#include "simd/vec.h"

#include <cmath>
#include <limits>

#include "catch.h"

using namespace fulgurite;
using namespace fulgurite::FULGURITE_VARIANT;

namespace {

template <class V>
V iota(Element<V> scale, Element<V> start) {
  V v{};
  for (int i = 0; i < kWidth<V>; ++i) v[i] = start + scale * static_cast<Element<V>>(i);
  return v;
}

}  // namespace

TEMPLATE_TEST_CASE("lanes load, store and splat in order", "[vec]", (Vec<float, 4>), (Vec<float, 8>), (Vec<float, 16>),
                   (Vec<double, 2>), (Vec<double, 4>), (Vec<double, 8>)) {
  using V = TestType;
  Element<V> from[kWidth<V> + 1], to[kWidth<V> + 1] = {};
  for (int i = 0; i <= kWidth<V>; ++i) from[i] = static_cast<Element<V>>(i) + Element<V>(0.5);
  store(to + 1, load<V>(from + 1));  // unaligned
  CHECK(to[0] == 0);
  for (int i = 1; i <= kWidth<V>; ++i) CHECK(to[i] == from[i]);
  const V zero = splat<V>(-0.0);
  for (int i = 0; i < kWidth<V>; ++i) CHECK(std::signbit(zero[i]));
}
