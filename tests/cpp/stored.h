// Numbers of kernel tests: float64, float32 on sets that leave float64 to others, or bfloat16 where FULGURITE_TEST_BFLOAT16 says so,
// all read and written as float64.
#pragma once

#include <cmath>
#include <vector>

#include "simd/convert.h"

namespace fulgurite {

#if defined(FULGURITE_TEST_BFLOAT16)
using Storage = BFloat16;
inline constexpr Dtype kDtype = Dtype::kBFloat16;
inline constexpr double kTolerance = 0x1p-7;  // rounded to 2⁻⁹ a few times on the way
#elif FULGURITE_FLOAT64
using Storage = double;
inline constexpr Dtype kDtype = Dtype::kFloat64;
inline constexpr double kTolerance = 1e-11;
#else
using Storage = float;
inline constexpr Dtype kDtype = Dtype::kFloat32;
inline constexpr double kTolerance = 1e-4;
#endif

inline constexpr bool kExact = kDtype == Dtype::kFloat64;

template <class S>
struct Cell {
  S stored{};
  Cell() = default;
  Cell(double x) : stored(FULGURITE_VARIANT::from_accumulate<S>(static_cast<Accumulate<S>>(x))) {}
  operator double() const { return FULGURITE_VARIANT::to_accumulate(stored); }
};
using Rows = std::vector<Cell<Storage>>;  // inputs, outputs, operands and their gradients
using Sums = std::vector<Cell<Accumulate<Storage>>>;  // what is kept in the accumulation type
using Numbers = std::vector<double>;

template <class V>
V numbers(int64_t n, int seed, double size = 1) {
  V x(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) x[i] = size * std::sin(0.37 * static_cast<double>(i + 1) * seed);
  return x;
}

/// a against what it should be.
inline bool near(double a, double b) {
  return a == b || std::fabs(a - b) <= kTolerance * (1 + std::fabs(b));
}

}  // namespace fulgurite
