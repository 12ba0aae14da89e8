// The vector layer: lane order, NaN rules, fixed trees, single rounding; at every width, whatever the set's own is.
#include "simd/vec.h"

#include <cmath>
#include <limits>

#include "catch.h"

using namespace fulgurite;
namespace set = fulgurite::FULGURITE_VARIANT;
using set::Element;
using set::kWidth;
using set::Vec;

namespace {

/// Small deterministic numbers with full mantissas.
template <class V>
V sample(int seed) {
  V v{};
  for (int i = 0; i < kWidth<V>; ++i) v[i] = static_cast<Element<V>>(std::sin(seed * 37 + i * 1.7));
  return v;
}

}  // namespace

#define EVERY_WIDTH                                                                       \
  (Vec<float, 4>), (Vec<float, 8>), (Vec<float, 16>), (Vec<double, 2>), (Vec<double, 4>), \
      (Vec<double, 8>)

TEMPLATE_TEST_CASE("lanes load, store and splat in order", "[vec]", EVERY_WIDTH) {
  using V = TestType;
  Element<V> from[kWidth<V> + 1], to[kWidth<V> + 1] = {};
  for (int i = 0; i <= kWidth<V>; ++i) from[i] = static_cast<Element<V>>(i) + Element<V>(0.5);
  set::store(to + 1, set::load<V>(from + 1));  // unaligned
  CHECK(to[0] == 0);
  for (int i = 1; i <= kWidth<V>; ++i) CHECK(to[i] == from[i]);
  const V zero = set::splat<V>(Element<V>(-0.0));
  for (int i = 0; i < kWidth<V>; ++i) {
    CHECK(std::signbit(zero[i]));
    CHECK(set::lane_index<V>()[i] == i);
  }
}

TEMPLATE_TEST_CASE("fma rounds once, sqrt is correctly rounded", "[vec]", EVERY_WIDTH) {
  using V = TestType;
  using T = Element<V>;
  const T epsilon = std::numeric_limits<T>::epsilon();
  for (int seed = 0; seed < 50; ++seed) {
    const V a = sample<V>(seed), b = sample<V>(seed + 50);
    const V rounded =
        set::fma(a, b, -(a * b));  // the rounding error of the product: zero were it rounded twice
    const V c = set::fma(a, b, sample<V>(seed + 100)), root = set::sqrt(set::abs(a));
    for (int i = 0; i < kWidth<V>; ++i) {
      CHECK(rounded[i] == std::fma(a[i], b[i], -(a[i] * b[i])));
      CHECK(c[i] == std::fma(a[i], b[i], sample<V>(seed + 100)[i]));
      CHECK(root[i] == std::sqrt(std::abs(a[i])));
    }
  }
  CHECK(set::fma(set::splat<V>(1 + epsilon), set::splat<V>(1 - epsilon), set::splat<V>(-1))[0] ==
        -epsilon * epsilon);
}

TEMPLATE_TEST_CASE("max and min give their second operand for NaN and for two zeros", "[vec]",
                   EVERY_WIDTH) {
  using V = TestType;
  using T = Element<V>;
  const V one = set::splat<V>(1), two = set::splat<V>(2),
          nan = set::splat<V>(std::numeric_limits<T>::quiet_NaN());
  const V plus = set::splat<V>(0), minus = set::splat<V>(T(-0.));
  for (int i = 0; i < kWidth<V>; ++i) {
    CHECK(set::max(one, two)[i] == 2);
    CHECK(set::max(two, one)[i] == 2);
    CHECK(set::min(one, two)[i] == 1);
    CHECK(set::min(two, one)[i] == 1);
    CHECK(std::isnan(set::max(one, nan)[i]));
    CHECK(std::isnan(set::min(one, nan)[i]));
    CHECK(set::max(nan, one)[i] == 1);
    CHECK(set::min(nan, one)[i] == 1);
    CHECK(std::signbit(set::max(plus, minus)[i]));
    CHECK_FALSE(std::signbit(set::max(minus, plus)[i]));
    CHECK(std::signbit(set::min(plus, minus)[i]));
  }
}

TEMPLATE_TEST_CASE("abs, copysign and select are lane-wise and keep NaN", "[vec]", EVERY_WIDTH) {
  using V = TestType;
  using T = Element<V>;
  V x = sample<V>(3), s = -sample<V>(4);
  x[0] = std::numeric_limits<T>::quiet_NaN();
  x[1] = T(-0.);
  s[1] = T(-0.);
  for (int i = 0; i < kWidth<V>; ++i) {
    CHECK_FALSE(std::signbit(set::abs(x)[i]));
    CHECK(std::signbit(set::copysign(x, s)[i]) == std::signbit(s[i]));
    const V picked = set::select<V>(set::lane_index<V>() < 1, x, s);
    if (i == 0) {
      CHECK(std::isnan(set::abs(x)[i]));
      CHECK(std::isnan(set::copysign(x, s)[i]));
      CHECK(std::isnan(picked[i]));
    } else {
      CHECK(set::abs(x)[i] == std::abs(x[i]));
      CHECK(set::copysign(x, s)[i] == std::copysign(x[i], s[i]));
      CHECK(picked[i] == s[i]);
    }
  }
}

TEMPLATE_TEST_CASE("sum adds in a fixed tree", "[vec]", EVERY_WIDTH) {
  using V = TestType;
  for (int seed = 0; seed < 20; ++seed) {
    V v = sample<V>(seed), tree = v;
    for (int half = kWidth<V> / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) tree[i] = tree[i] + tree[i + half];
    CHECK(set::sum(v) == tree[0]);
  }
}

TEMPLATE_TEST_CASE("max_lane finds the largest lane wherever it is, and an infinity", "[vec]",
                   EVERY_WIDTH) {
  using V = TestType;
  using T = Element<V>;
  for (int i = 0; i < kWidth<V>; ++i) {
    V v = sample<V>(i) - 2;
    v[i] = T(-0.5);
    CHECK(set::max_lane(v) == T(-0.5));
    v[i] = std::numeric_limits<T>::infinity();
    CHECK(set::max_lane(v) == v[i]);
    v = set::splat<V>(-std::numeric_limits<T>::infinity());
    CHECK(set::max_lane(v) == v[0]);
  }
}
