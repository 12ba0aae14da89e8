// The activations against the C library, and their slopes against differences.
#include "moe/cpu/kernels/activations.h"

#include <cmath>
#include <limits>

#include "catch.h"
#include "stored.h"

using namespace fulgurite;
using namespace fulgurite::FULGURITE_VARIANT;

namespace {

using E = Operand<Storage>;
using T = Accumulate<Storage>;
using V = Native<T>;
using Math = ActivationMath<E>;

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double gelu(double g) { return g * 0.5 * std::erfc(-g * std::sqrt(0.5)); }
double gelu_tanh(double g) {
  return 0.5 * g * (1 + std::tanh(std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g)));
}

constexpr ActivationRule kOai{Activation::kSwigluOai, 1.702, 2},
    kUnlimited{Activation::kSwigluOai, 1.702, 0};
const double kInfinity_ = std::numeric_limits<double>::infinity();
const double kNaN = std::numeric_limits<double>::quiet_NaN();

template <class Act, class Exact>
void check(const Act& act, const Exact& exact) {
  // bfloat16's σ has a relative error of 3e-6.
  const double tolerance = kExact ? 1e-13 : 2e-5, step = 1e-4;
  for (double g = -9.01; g < 9; g += 0.07) {
    INFO(g);
    const T at = static_cast<T>(g);
    const double x = at, value = act.template value<Math>(splat<V>(at))[0];
    const Curve<V> curve = act.template curve<Math>(splat<V>(at));
    REQUIRE(std::fabs(value - exact(x)) <= tolerance * (1 + std::fabs(exact(x))));
    REQUIRE(curve.value[0] == static_cast<T>(value));
    const double slope =
        (exact(x - 2 * step) - 8 * exact(x - step) + 8 * exact(x + step) - exact(x + 2 * step)) /
        (12 * step);
    REQUIRE(std::fabs(curve.slope[0] - slope) <= (kExact ? 1e-9 : 1e-4));
  }
  REQUIRE(std::isnan(act.template value<Math>(splat<V>(static_cast<T>(kNaN)))[0]));
  for (const double huge : {-1e30, 1e30}) {
    const Curve<V> curve = act.template curve<Math>(splat<V>(static_cast<T>(huge)));
    REQUIRE(std::isfinite(curve.slope[0] / 1e31));
    REQUIRE(curve.value[0] == act.template value<Math>(splat<V>(static_cast<T>(huge)))[0]);
  }
}

}  // namespace

TEST_CASE("activations and their slopes") {
  check(Silu{}, [](double g) { return g * sigmoid(g); });
  check(Gelu{}, gelu);
  check(GeluTanh{}, gelu_tanh);
  check(Relu{}, [](double g) { return std::fmax(g, 0); });
  check(Relu2{}, [](double g) { return std::fmax(g, 0) * std::fmax(g, 0); });
  check(SwigluOai(kOai),
        [](double g) { return std::fmin(g, 2) * sigmoid(1.702 * std::fmin(g, 2)); });
  check(SwigluOai(kUnlimited), [](double g) { return g * sigmoid(1.702 * g); });
}

TEST_CASE("ups are clamped on both sides and pass on NaN") {
  const SwigluOai act(kOai);
  const auto up = [&](double u) { return act.template up<Math>(splat<V>(static_cast<T>(u)))[0]; };
  const auto through = [&](double u) {
    return act.template through_up<Math>(splat<V>(3), splat<V>(static_cast<T>(u)))[0];
  };
  REQUIRE((up(-5) == -1 && up(-1.5) == -0.5 && up(2) == 3 && up(kInfinity_) == 3));
  REQUIRE(std::isnan(up(kNaN)));
  REQUIRE((through(-2.5) == 0 && through(-2) == 3 && through(1) == 3 && through(kInfinity_) == 0));
  REQUIRE(through(kNaN) == 3);
}
