// Scores that are not normalised, on plain numbers and by the C library.
#include "attention/rules/activations.h"

#include <cmath>
#include <limits>

#include "catch.h"
#include "std_math.h"

using namespace fulgurite;

namespace {

constexpr double kScale = 0.7;

double exact(ScoreKind kind, double s) {
  if (kind == ScoreKind::kRelu2) return kScale * std::fmax(s, 0) * std::fmax(s, 0);
  return kScale * 0.5 * std::erfc(-(s - std::sqrt(0.5)) * std::sqrt(2 * M_PI));
}

template <class T>
bool near(T a, double b) {
  return std::fabs(static_cast<double>(a) - b) <=
         (sizeof(T) == 8 ? 1e-9 : 4e-6) * (1 + std::fabs(b));
}

}  // namespace

TEMPLATE_TEST_CASE("activations of scores and their slopes", "", float, double) {
  const ScoreKind kind = GENERATE(ScoreKind::kRelu2, ScoreKind::kLaplace);
  for (double s = -4.05; s < 4; s += 0.1) {
    const TestType x = static_cast<TestType>(s);
    REQUIRE(near(activation<StdMath>(kind, kScale, x), exact(kind, x)));
    REQUIRE(near(activation_slope<StdMath>(kind, kScale, x),
                 slope_of([&](double at) { return exact(kind, at); }, x)));
  }
}

TEST_CASE("a hidden pair weighs nothing, and NaN stays") {
  const ScoreKind kind = GENERATE(ScoreKind::kRelu2, ScoreKind::kLaplace);
  REQUIRE(activation<StdMath>(kind, kScale, -std::numeric_limits<double>::infinity()) == 0);
  REQUIRE(std::isnan(activation<StdMath>(kind, kScale, std::numeric_limits<double>::quiet_NaN())));
}
