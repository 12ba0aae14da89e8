// Conversions between float32 and the 16-bit types against arithmetic in float64, and generic code against the hardware's.
#include "simd/convert.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "catch.h"

using namespace fulgurite;
namespace set = fulgurite::FULGURITE_VARIANT;
using set::Vec;

namespace {

float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

/// A 16-bit format with `mantissa` stored bits.
struct Format {
  int mantissa, bias;

  uint16_t infinity() const {
    return static_cast<uint16_t>(((1 << (15 - mantissa)) - 1) << mantissa);
  }
  double value(uint16_t bits) const {  // infinity as the power of two above the largest number
    const int exponent = (bits & 0x7fff) >> mantissa, fraction = bits & ((1 << mantissa) - 1);
    const double magnitude =
        exponent == 0 ? std::ldexp(fraction, 1 - bias - mantissa)
                      : std::ldexp(fraction + (1 << mantissa), exponent - bias - mantissa);
    return bits & 0x8000 ? -magnitude : magnitude;
  }
  bool is_nan(uint16_t bits) const { return (bits & 0x7fff) > infinity(); }
  bool is_infinite(uint16_t bits) const { return (bits & 0x7fff) == infinity(); }
  /// Whether `bits` is x rounded to nearest, ties to even.
  bool rounds_to(float x, uint16_t bits) const {
    if (x != x) return is_nan(bits) && (bits >> (mantissa - 1) & 1);  // quiet
    if (std::signbit(x) != static_cast<bool>(bits & 0x8000) || is_nan(bits)) return false;
    const uint16_t magnitude = bits & 0x7fff;
    const double exact = std::abs(static_cast<double>(x)), here = value(magnitude);
    if (std::isinf(x)) return is_infinite(bits);
    const double above = magnitude == infinity()
                             ? std::numeric_limits<double>::infinity()
                             : value(static_cast<uint16_t>(magnitude + 1)) - exact;
    const double below = magnitude == 0 ? std::numeric_limits<double>::infinity()
                                        : exact - value(static_cast<uint16_t>(magnitude - 1));
    const double error = std::abs(exact - here);
    if (exact > here && magnitude == infinity()) return true;
    const double other = exact > here ? above : below;
    return error < other || (error == other && !(bits & 1));
  }
};
constexpr Format kBFloat16{7, 127}, kHalf{10, 15};

template <int W>
struct BFloat16Functions {
  static constexpr int kLanes = W;
  static constexpr const Format& kFormat = kBFloat16;
  static Vec<float, W> widen(Vec<uint16_t, W> v) { return set::widen_bfloat16<W>(v); }
  static Vec<uint16_t, W> narrow(Vec<float, W> v) { return set::narrow_bfloat16<W>(v); }
};
template <int W>
struct HalfFunctions {
  static constexpr int kLanes = W;
  static constexpr const Format& kFormat = kHalf;
  static Vec<float, W> widen(Vec<uint16_t, W> v) { return set::widen_float16<W>(v); }
  static Vec<uint16_t, W> narrow(Vec<float, W> v) { return set::narrow_float16<W>(v); }
};
template <int W>
struct GenericHalfFunctions {
  static constexpr int kLanes = W;
  static constexpr const Format& kFormat = kHalf;
  static Vec<float, W> widen(Vec<uint16_t, W> v) { return set::widen_float16_generic<W>(v); }
  static Vec<uint16_t, W> narrow(Vec<float, W> v) { return set::narrow_float16_generic<W>(v); }
};

template <class Functions>
uint16_t narrow_one(float x) {
  return Functions::narrow(set::splat<Vec<float, Functions::kLanes>>(x))[Functions::kLanes - 1];
}

#define EVERY_CONVERSION                                                                       \
  (BFloat16Functions<4>), (BFloat16Functions<8>), (BFloat16Functions<16>), (HalfFunctions<4>), \
      (HalfFunctions<8>), (HalfFunctions<16>), (GenericHalfFunctions<4>),                      \
      (GenericHalfFunctions<8>), (GenericHalfFunctions<16>)

}  // namespace

TEMPLATE_TEST_CASE("every 16-bit pattern widens exactly and comes back", "[convert]",
                   EVERY_CONVERSION) {
  constexpr int W = TestType::kLanes;
  constexpr Format kFormat = TestType::kFormat;
  int wrong = 0;
  for (int first = 0; first < 1 << 16; first += W) {
    Vec<uint16_t, W> bits{};
    for (int i = 0; i < W; ++i) bits[i] = static_cast<uint16_t>(first + i);
    const Vec<float, W> wide = TestType::widen(bits);
    const Vec<uint16_t, W> back = TestType::narrow(wide);
    for (int i = 0; i < W; ++i) {
      if (kFormat.is_nan(bits[i])) {
        wrong += !(std::isnan(wide[i]) && std::signbit(wide[i]) == (bits[i] >> 15) &&
                   back[i] == (bits[i] | 1 << (kFormat.mantissa - 1)));
      } else {
        const double exact = kFormat.is_infinite(bits[i])
                                 ? std::copysign(INFINITY, kFormat.value(bits[i]))
                                 : kFormat.value(bits[i]);
        wrong +=
            !(wide[i] == exact && std::signbit(wide[i]) == (bits[i] >> 15) && back[i] == bits[i]);
      }
    }
  }
  CHECK(wrong == 0);
}

TEMPLATE_TEST_CASE("narrowing rounds to nearest even over all of float32", "[convert]",
                   EVERY_CONVERSION) {
  constexpr int W = TestType::kLanes;
  constexpr Format kFormat = TestType::kFormat;
  constexpr uint32_t kStride = 4099;
  int64_t wrong = 0;
  for (uint64_t first = 0; first < uint64_t{1} << 32; first += kStride * W) {
    Vec<float, W> x{};
    for (uint32_t i = 0; i < W; ++i) x[i] = float_of(static_cast<uint32_t>(first) + kStride * i);
    const Vec<uint16_t, W> bits = TestType::narrow(x);
    for (int i = 0; i < W; ++i) wrong += !kFormat.rounds_to(x[i], bits[i]);
  }
  CHECK(wrong == 0);
}

TEMPLATE_TEST_CASE("narrowing at every tie and beside it", "[convert]", EVERY_CONVERSION) {
  constexpr Format kFormat = TestType::kFormat;
  int wrong = 0;
  for (int bits = 0; bits < 1 << 16; ++bits) {
    if (kFormat.is_nan(static_cast<uint16_t>(bits)) ||
        kFormat.is_infinite(static_cast<uint16_t>(bits)))
      continue;
    const float tie = static_cast<float>((kFormat.value(static_cast<uint16_t>(bits)) +
                                          kFormat.value(static_cast<uint16_t>(bits + 1))) /
                                         2);
    const uint32_t pattern = bits_of(tie);
    for (const float x : {float_of(pattern - 1), tie, float_of(pattern + 1)})
      wrong += !kFormat.rounds_to(x, narrow_one<TestType>(x));
  }
  CHECK(wrong == 0);
  for (const uint32_t nan : {0x7f800001u, 0x7fc00000u, 0x7fffffffu, 0xff800001u, 0xffffffffu})
    CHECK(kFormat.rounds_to(float_of(nan), narrow_one<TestType>(float_of(nan))));
}

TEMPLATE_TEST_CASE("the hardware's float16 conversions and the generic ones give the same bits",
                   "[convert]", (HalfFunctions<4>), (HalfFunctions<8>), (HalfFunctions<16>)) {
  constexpr int W = TestType::kLanes;
  int64_t wrong = 0;
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += 4099) {
    const float x = float_of(static_cast<uint32_t>(bits));
    wrong += narrow_one<TestType>(x) != narrow_one<GenericHalfFunctions<W>>(x);
  }
  for (int bits = 0; bits < 1 << 16; ++bits) {
    const auto v = Vec<uint16_t, W>{} + static_cast<uint16_t>(bits);
    wrong += bits_of(TestType::widen(v)[0]) != bits_of(GenericHalfFunctions<W>::widen(v)[0]);
  }
  CHECK(wrong == 0);
}

TEMPLATE_TEST_CASE("load_as and store_as convert every storage type", "[convert]", (Vec<float, 4>),
                   (Vec<float, 8>), (Vec<float, 16>)) {
  using V = TestType;
  constexpr int W = set::kWidth<V>;
  const V x = __builtin_convertvector(set::lane_index<V>(), V) - 2.5f;
  BFloat16 b[W];
  Half h[W];
  float f[W];
  double d[W];
  set::store_as(b, x);
  set::store_as(h, x);
  set::store_as(f, x);
  set::store_as(d, x);
  for (int i = 0; i < W; ++i) {
    CHECK(set::load_as<V>(b)[i] == x[i]);
    CHECK(set::load_as<V>(h)[i] == x[i]);
    CHECK(set::load_as<V>(f)[i] == x[i]);
    CHECK(set::load_as<V>(d)[i] == x[i]);
    CHECK(set::to_accumulate(b[i]) == x[i]);
    CHECK(set::to_accumulate(h[i]) == x[i]);
    CHECK(set::from_accumulate<BFloat16>(x[i]).bits == b[i].bits);
    CHECK(set::from_accumulate<Half>(x[i]).bits == h[i].bits);
  }
  CHECK(set::from_accumulate<double>(0.1) == 0.1);
}

TEMPLATE_TEST_CASE("the first n lanes: the rest is filled, nothing beyond n is touched",
                   "[convert]", float, BFloat16, Half) {
  using V = set::Native<float>;
  constexpr int W = set::kWidth<V>;
  TestType from[W], to[W];
  for (int i = 0; i < W; ++i) from[i] = set::from_accumulate<TestType>(static_cast<float>(i + 1));
  for (int n = 0; n <= W; ++n) {
    const V v = set::load_first<V>(from, n, -7.f);
    for (int i = 0; i < W; ++i) {
      CHECK(v[i] == (i < n ? static_cast<float>(i + 1) : -7.f));
      to[i] = set::from_accumulate<TestType>(99.f);
    }
    set::store_first(to, v, n);
    for (int i = 0; i < W; ++i)
      CHECK(set::to_accumulate(to[i]) == (i < n ? static_cast<float>(i + 1) : 99.f));
  }
}
