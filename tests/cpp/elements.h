// Elements of any storage type, read and written as float64: a test that is compiled once per set runs for every type of the set.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "simd/convert.h"

namespace fulgurite {

/// What the kernels of this set serve (simd/kernel.h).
inline constexpr Dtype kDtypes[] = {
#if !FULGURITE_PAIR_PRODUCTS
#if FULGURITE_FLOAT64
    Dtype::kFloat64,
#endif
    Dtype::kFloat32, Dtype::kFloat16,
#endif
    Dtype::kBFloat16};

inline Dtype accumulate(Dtype dtype) { return dtype == Dtype::kFloat64 ? dtype : Dtype::kFloat32; }
/// What products of this storage type are made of (simd/microkernel.h).
inline Dtype operand(Dtype dtype) { return FULGURITE_PAIR_PRODUCTS ? dtype : accumulate(dtype); }

/// Runs visitor(S{}) for the storage type S of dtype, on every set.
template <class Visitor>
void with_stored(Dtype dtype, const Visitor& visitor) {
  switch (dtype) {
    case Dtype::kFloat64: return visitor(double{});
    case Dtype::kFloat32: return visitor(float{});
    case Dtype::kBFloat16: return visitor(BFloat16{});
    case Dtype::kFloat16: return visitor(Half{});
  }
}

class Elements {
 public:
  Elements(Dtype dtype, int64_t n, double fill = 0)
      : dtype_(dtype), bytes_(static_cast<size_t>(n) * 8) {
    for (int64_t i = 0; i < n; ++i) set(i, fill);
  }
  /// Numbers within ±size that look like noise.
  static Elements sines(Dtype dtype, int64_t n, int seed, double size = 1) {
    Elements x(dtype, n);
    for (int64_t i = 0; i < n; ++i)
      x.set(i, size * std::sin(0.37 * static_cast<double>(i + 1) * seed));
    return x;
  }
  double operator[](int64_t i) const {
    double x = 0;
    with_stored(dtype_, [&](auto cell) {
      std::memcpy(&cell, bytes_.data() + static_cast<size_t>(i) * sizeof(cell), sizeof(cell));
      x = FULGURITE_VARIANT::to_accumulate(cell);
    });
    return x;
  }
  void set(int64_t i, double x) {
    with_stored(dtype_, [&](auto cell) {
      using S = decltype(cell);
      cell = FULGURITE_VARIANT::from_accumulate<S>(static_cast<Accumulate<S>>(x));
      std::memcpy(bytes_.data() + static_cast<size_t>(i) * sizeof(cell), &cell, sizeof(cell));
    });
  }
  void* data() { return bytes_.data(); }
  const void* data() const { return bytes_.data(); }

 private:
  Dtype dtype_;
  std::vector<char> bytes_;
};

/// a, rounded to dtype, against what it should be; `step`: by how much that is uncertain itself.
inline bool near(Dtype dtype, double a, double b, double step = 0) {
  double tolerance = 1e-11;
  if (dtype == Dtype::kFloat32) tolerance = 2e-5;
  if (dtype == Dtype::kFloat16) tolerance = 0x1p-10;
  if (dtype == Dtype::kBFloat16) tolerance = 0x1p-7;
  return a == b || std::fabs(a - b) <= (tolerance + step) * (1 + std::fabs(b));
}

/// The slope of f at 0, to about 1e-9.
inline constexpr double kSlopeError = 1e-8;
template <class F>
double slope(const F& f) {
  constexpr double h = 1e-4;
  return (f(-2 * h) - 8 * f(-h) + 8 * f(h) - f(2 * h)) / (12 * h);
}

}  // namespace fulgurite
