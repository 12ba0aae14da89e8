// Elementary functions against the C library one precision up: float32 over a stride of all bit patterns, float64 over
// bit patterns and over the range where the function is not constant. The bounds are those of simd/math.h.
#include "simd/math.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "catch.h"

using namespace fulgurite;
namespace set = fulgurite::FULGURITE_VARIANT;
using set::Vec;

namespace {

template <class T>
using Wider = std::conditional_t<sizeof(T) == 4, double, long double>;
template <class T>
using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

template <class T>
Bits<T> bits_of(T x) {
  Bits<T> bits;
  std::memcpy(&bits, &x, sizeof(T));
  return bits;
}
template <class T>
T from_bits(Bits<T> bits) {
  T x;
  std::memcpy(&x, &bits, sizeof(T));
  return x;
}
template <class T>
bool same(T a, T b) {
  return bits_of(a) == bits_of(b) || (a != a && b != b);
}

#define FUNCTION(name, reference_expression, low_, high_, float_bound, double_bound,      \
                 subnormal_bound_)                                                        \
  struct name##_function {                                                                \
    static constexpr const char* kName = #name;                                           \
    static constexpr double low = low_, high = high_, subnormal_bound = subnormal_bound_; \
    template <class T>                                                                    \
    static constexpr double bound = sizeof(T) == 4 ? float_bound : double_bound;          \
    template <class V>                                                                    \
    static V apply(V x) {                                                                 \
      return set::name(x);                                                                \
    }                                                                                     \
    template <class R>                                                                    \
    static R reference(R x) {                                                             \
      return reference_expression;                                                        \
    }                                                                                     \
  };
FUNCTION(exp, std::exp(x), -746, 710, 1.0, 1.0, 0.8)
FUNCTION(exp2, std::exp2(x), -1076, 1024, 1.0, 1.1, 0.8)
FUNCTION(log, std::log(x), 0, 4, 0.9, 0.9, 0)
FUNCTION(tanh, std::tanh(x), -20, 20, 1.5, 1.5, 0)
FUNCTION(erf, std::erf(x), -6, 6, 1.2, 1.2, 0.6)
FUNCTION(sigmoid, x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x)), -746, 40, 2.2,
         2.2, 0.8)

/// Its domain ends at 88.
struct exp_flushed_function {
  static constexpr const char* kName = "exp_flushed";
  static constexpr double low = -746, high = 88, subnormal_bound = 0.9;
  template <class T>
  static constexpr double bound = sizeof(T) == 4 ? 1.1 : 1.0;
  template <class V>
  static V apply(V x) {
    return set::exp_flushed(set::min(set::splat<V>(88), x));
  }
  template <class R>
  static R reference(R x) {
    // 0 where x/ln 2 rounds to an exponent below the normal ones; R is one precision up
    const R lowest = (sizeof(R) == 8 ? R(-126.5) : R(-1022.5)) * std::log(R(2));
    return x < lowest ? R(0) : std::exp(x > 88 ? R(88) : x);
  }
};

/// Sixteen (eight) inputs through every width: the bits must agree. Returns the widest vector's results.
template <class F, class T>
bool all_widths(const T* x, T* y) {
  constexpr int kWide = 64 / sizeof(T);
  set::store(y, F::apply(set::load<Vec<T, kWide>>(x)));
  T half[kWide], quarter[kWide];
  for (int i = 0; i < kWide; i += kWide / 2)
    set::store(half + i, F::apply(set::load<Vec<T, kWide / 2>>(x + i)));
  for (int i = 0; i < kWide; i += kWide / 4)
    set::store(quarter + i, F::apply(set::load<Vec<T, kWide / 4>>(x + i)));
  bool equal = true;
  for (int i = 0; i < kWide; ++i) equal &= same(y[i], half[i]) && same(y[i], quarter[i]);
  return equal;
}

struct Worst {
  double normal = 0, subnormal = 0, at_normal = 0, at_subnormal = 0;
  bool special = true, widths = true;
};

/// |y − exact| in units in the last place of exact; infinity stands for the power of two above the largest number.
template <class T>
void judge(T x, T y, Wider<T> exact, Worst& worst) {
  using L = std::numeric_limits<T>;
  const Wider<T> top = std::ldexp(Wider<T>(1), L::max_exponent);
  if (exact != exact || exact == 0 ||
      std::abs(exact) >= top) {  // beyond the range only infinity will do
    worst.special &=
        same(y, std::abs(exact) >= top ? std::copysign(L::infinity(), static_cast<T>(exact))
                                       : static_cast<T>(exact));
    return;
  }
  const bool subnormal = std::abs(exact) < L::min();
  const int exponent = subnormal ? L::min_exponent - 1 : std::ilogb(exact);
  const Wider<T> value = std::isinf(y) ? std::copysign(top, Wider<T>(y)) : Wider<T>(y);
  const double error = static_cast<double>(std::abs(value - exact) /
                                           std::ldexp(Wider<T>(1), exponent - L::digits + 1));
  double& most = subnormal ? worst.subnormal : worst.normal;
  if (!(error <= most)) {
    most = error;
    (subnormal ? worst.at_subnormal : worst.at_normal) = static_cast<double>(x);
  }
}

template <class F, class T, class Input>
void measure(int64_t count, const Input& input, Worst& worst) {
  constexpr int kWide = 64 / sizeof(T);
  T x[kWide], y[kWide];
  for (int64_t i = 0; i < count; i += kWide) {
    for (int l = 0; l < kWide; ++l) x[l] = input(i + l);
    worst.widths &= all_widths<F>(x, y);
    for (int l = 0; l < kWide; ++l) judge(x[l], y[l], F::reference(Wider<T>(x[l])), worst);
  }
}

#if defined(__aarch64__)
constexpr int64_t kSparser = 16;  // emulated, and long double is software there
#else
constexpr int64_t kSparser = 1;
#endif

template <class F, class T>
void check_function() {
  constexpr int64_t kCount = (sizeof(T) == 4 ? 1 << 20 : 1 << 17) / kSparser;
  constexpr Bits<T> kStride = ~Bits<T>(0) / kCount | 1;
  constexpr double low = F::low, high = F::high;
  Worst worst;
  measure<F, T>(
      kCount, [](int64_t i) { return from_bits<T>(static_cast<Bits<T>>(i) * kStride); }, worst);
  measure<F, T>(
      kCount,
      [](int64_t i) {
        return static_cast<T>(low + (high - low) * static_cast<double>(i) / kCount);
      },
      worst);
  measure<F, T>(
      kCount, [](int64_t i) { return static_cast<T>(-1.5 + 3. * static_cast<double>(i) / kCount); },
      worst);
  INFO(F::kName << ": worst at " << worst.at_normal << ", subnormal result at "
                << worst.at_subnormal);
  CHECK(worst.normal <= F::template bound<T>);
  CHECK(worst.subnormal <= F::subnormal_bound);
  CHECK(worst.special);
  CHECK(worst.widths);
}

/// Hash of the results over a fixed set of inputs.
template <class F, class T>
uint64_t fingerprint() {
  constexpr int kWide = 64 / sizeof(T);
  constexpr Bits<T> kStride = ~Bits<T>(0) / (1 << 15) | 1;
  uint64_t hash = 0xcbf29ce484222325;
  T x[kWide], y[kWide];
  for (int64_t i = 0; i < 1 << 16; i += kWide) {
    for (int l = 0; l < kWide; ++l) {
      const int64_t n = i + l;
      x[l] = n & 1
                 ? from_bits<T>(static_cast<Bits<T>>(n / 2) * kStride)
                 : static_cast<T>(F::low + (F::high - F::low) * static_cast<double>(n) / (1 << 16));
    }
    set::store(y, F::apply(set::load<Vec<T, kWide>>(x)));
    for (const T v : y) hash = (hash ^ (v == v ? bits_of(v) : Bits<T>(1))) * 0x100000001b3;
  }
  return hash;
}

template <class V, class G>
set::Element<V> first(set::Element<V> x, const G& g) {
  return g(set::splat<V>(x))[0];
}

}  // namespace

TEMPLATE_TEST_CASE("errors stay within the stated bounds and widths agree bit for bit, float32",
                   "[math]", exp_function, exp_flushed_function, exp2_function, log_function,
                   tanh_function, erf_function, sigmoid_function) {
  check_function<TestType, float>();
}

TEMPLATE_TEST_CASE("errors stay within the stated bounds and widths agree bit for bit, float64",
                   "[math]", exp_function, exp_flushed_function, exp2_function, log_function,
                   tanh_function, erf_function, sigmoid_function) {
  check_function<TestType, double>();
}

// One constant for all sets: this is what "the same bits on every instruction set" means. A changed polynomial changes them.
TEST_CASE("results have the same bits on every instruction set", "[math]") {
  CHECK(fingerprint<exp_function, float>() == 0x934b6c3095f4b9cfu);
  CHECK(fingerprint<exp_flushed_function, float>() == 0x240177eb39bc0be7u);
  CHECK(fingerprint<exp2_function, float>() == 0x29610a0af8aa5e11u);
  CHECK(fingerprint<log_function, float>() == 0xc5d3eeeac8b96033u);
  CHECK(fingerprint<tanh_function, float>() == 0xb90557440ce3785fu);
  CHECK(fingerprint<erf_function, float>() == 0x5954aa667be35a1au);
  CHECK(fingerprint<sigmoid_function, float>() == 0x412abad5b3cb2661u);
  CHECK(fingerprint<exp_function, double>() == 0xc63a2aa32d9be096u);
  CHECK(fingerprint<exp_flushed_function, double>() == 0xf4935cfd2497c8b3u);
  CHECK(fingerprint<exp2_function, double>() == 0x85f291e7e4afaa15u);
  CHECK(fingerprint<log_function, double>() == 0x2f613e6162189fecu);
  CHECK(fingerprint<tanh_function, double>() == 0xcd86c6c309e1d819u);
  CHECK(fingerprint<erf_function, double>() == 0x5f94586b390fa930u);
  CHECK(fingerprint<sigmoid_function, double>() == 0x8268aef6d62fc44du);
}

TEST_CASE("2^x for weights that bfloat16 rounds", "[math]") {
  using V = set::Vec<float, 4>;
  const auto exp2_rough = [](V v) { return set::exp2_rough(v); };
  double worst = 0;
  for (int i = -126 * 4096; i <= 127 * 4096; ++i) {
    const float x = float(i) / 4096;
    worst = std::max(worst, std::abs(first<V>(x, exp2_rough) / std::exp2(double(x)) - 1));
  }
  CHECK(worst <= 2.9e-6);
  for (int n = -126; n <= 127; ++n) CHECK(first<V>(float(n), exp2_rough) == std::ldexp(1.f, n));
  for (const float x : {-127.f, -1e4f, -std::numeric_limits<float>::infinity()})
    CHECK(same(first<V>(x, exp2_rough), 0.f));
  CHECK(std::isnan(first<V>(std::numeric_limits<float>::quiet_NaN(), exp2_rough)));
}

TEMPLATE_TEST_CASE("special values", "[math]", (Vec<float, 4>), (Vec<float, 16>), (Vec<double, 2>),
                   (Vec<double, 8>)) {
  using V = TestType;
  using T = set::Element<V>;
  using L = std::numeric_limits<T>;
  const T inf = L::infinity(), nan = L::quiet_NaN(), tiny = L::denorm_min();
  const auto exp = [](V v) { return set::exp(v); };
  const auto exp2 = [](V v) { return set::exp2(v); };
  const auto exp_flushed = [](V v) { return set::exp_flushed(v); };
  const auto log = [](V v) { return set::log(v); };
  const auto tanh = [](V v) { return set::tanh(v); };
  const auto erf = [](V v) { return set::erf(v); };
  const auto sigmoid = [](V v) { return set::sigmoid(v); };
  const auto silu = [](V v) { return set::silu(v); };

  for (const T zero : {T(0), T(-0.)}) {
    CHECK(first<V>(zero, exp) == 1);
    CHECK(first<V>(zero, exp2) == 1);
    CHECK(first<V>(zero, exp_flushed) == 1);
    CHECK(first<V>(zero, log) == -inf);
    CHECK(first<V>(zero, sigmoid) == T(0.5));
    CHECK(same(first<V>(zero, tanh), zero));
    CHECK(same(first<V>(zero, erf), zero));
    CHECK(same(first<V>(zero, silu), zero));
  }
  CHECK(first<V>(1, log) == 0);
  for (int n = L::min_exponent - L::digits; n < L::max_exponent; ++n)
    CHECK(first<V>(T(n), exp2) == std::ldexp(T(1), n));

  CHECK(first<V>(inf, exp) == inf);
  CHECK(same(first<V>(-inf, exp), T(0)));
  CHECK(first<V>(inf, exp2) == inf);
  CHECK(same(first<V>(-inf, exp2), T(0)));
  CHECK(same(first<V>(-inf, exp_flushed), T(0)));
  CHECK(first<V>(inf, log) == inf);
  CHECK(std::isnan(first<V>(-inf, log)));
  CHECK(std::isnan(first<V>(-tiny, log)));
  CHECK(first<V>(inf, sigmoid) == 1);
  CHECK(first<V>(-inf, sigmoid) == 0);
  CHECK(first<V>(inf, silu) == inf);
  for (const T sign : {T(1), T(-1)}) {
    CHECK(first<V>(sign * inf, tanh) == sign);
    CHECK(first<V>(sign * inf, erf) == sign);
    CHECK(first<V>(sign * tiny, tanh) == sign * tiny);
    CHECK(first<V>(sign * tiny, exp) == 1);
  }
  CHECK(first<V>(tiny, log) == Approx(std::log(tiny)));
  for (const T x : {nan, -nan})
    for (const T y :
         {first<V>(x, exp), first<V>(x, exp_flushed), first<V>(x, exp2), first<V>(x, log),
          first<V>(x, tanh), first<V>(x, erf), first<V>(x, sigmoid), first<V>(x, silu)})
      CHECK(std::isnan(y));
}
