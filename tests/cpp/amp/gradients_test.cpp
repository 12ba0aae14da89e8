// Statistics and unscaling of gradients: the tree of the sum, and bad elements at every position.
#include <cmath>
#include <limits>
#include <vector>

#include "amp/cpu/kernels/params.h"
#include "catch.h"
#include "elements.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
GradStatsFn amp_grad_stats;
UnscaleTaskFn amp_unscale;
}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite

using namespace fulgurite;

namespace {

struct Stats {
  double sum;
  bool bad;
};

Stats stats(const void* x, Dtype dtype, const Walk& walk, const std::vector<int64_t>& layouts,
            double inv_scale) {
  const GradTensor grad{const_cast<void*>(x), dtype};
  Stats s{};
  FULGURITE_VARIANT::amp_grad_stats({{&walk, layouts.data(), &grad, 1, inv_scale}, &s.sum, &s.bad},
                                    0, 0, 0);
  return s;
}
Stats stats(std::vector<float>& x, double inv_scale) {
  return stats(x.data(), Dtype::kFloat32, {0, static_cast<int64_t>(x.size()), 0, 0}, {}, inv_scale);
}

bool unscale(std::vector<float>& x, double inv_scale) {
  const Walk walk{0, static_cast<int64_t>(x.size()), 0, 0};
  const GradTensor grad{x.data(), Dtype::kFloat32};
  return FULGURITE_VARIANT::amp_unscale({&walk, nullptr, &grad, 1, inv_scale}, 0, walk.numel);
}

/// The tree in plain code: 16 lanes, then halves.
template <class X>
double tree_sum(const X& x, double inv_scale) {
  double lanes[16] = {};
  for (size_t i = 0; i < x.size(); ++i) {
    const double g = static_cast<double>(x[i]) * inv_scale;
    lanes[i % 16] += g * g;
  }
  for (int half = 8; half > 0; half /= 2)
    for (int k = 0; k < half; ++k) lanes[k] += lanes[k + half];
  return lanes[0];
}

std::vector<float> values(size_t n) {
  std::vector<float> x(n);
  for (size_t i = 0; i < n; ++i) x[i] = std::sin(static_cast<float>(i) + 0.3f) * 1e20f;
  return x;
}

}  // namespace

TEST_CASE("the sum is that of the tree, bit for bit") {
  for (size_t n : {0, 1, 5, 15, 16, 17, 100, 4096}) {
    std::vector<float> x = values(n);
    const Stats s = stats(x, 0.3);
    CHECK(s.sum == tree_sum(x, 0.3));
    CHECK_FALSE(s.bad);
  }
}

TEST_CASE("one bad element is found wherever it is") {
  for (float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                    std::numeric_limits<float>::quiet_NaN()})
    for (size_t i = 0; i < 37; ++i) {
      std::vector<float> x = values(37);
      CHECK_FALSE(unscale(x, 0.5));
      x[i] = bad;
      CHECK(stats(x, 1.0).bad);
      CHECK(unscale(x, 0.5));
    }
}

TEST_CASE("the largest float is finite") {
  std::vector<float> x(9, std::numeric_limits<float>::max());
  CHECK_FALSE(stats(x, 1.0).bad);
  CHECK_FALSE(unscale(x, 1.0));
  CHECK(x[8] == std::numeric_limits<float>::max());
}

TEST_CASE("gradients of every type, dense and in strides, are unscaled and summed") {
  for (const Dtype dtype : kDtypes)
    for (const int64_t n : {0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33})
      for (const bool strided : {false, true}) {
        INFO("dtype " << int(dtype) << ", " << n << (strided ? " in strides" : " dense"));
        // Two columns of n numbers; strided, each has a gap of one behind every number.
        constexpr int64_t kColumns = 2;
        const int64_t numel = kColumns * n, column = strided ? 2 * n + 3 : n,
                      step = strided ? 2 : 1;
        const Elements before = Elements::sines(dtype, kColumns * column, 3, 5);
        const std::vector<int64_t> layouts{kColumns, n, column, step};
        const Walk walk{64, numel, strided ? 2 : 0, 0};
        std::vector<double> logical;
        for (int64_t i = 0; i < numel; ++i)
          logical.push_back(before[i / n * column + i % n * step]);

        const Stats s = stats(before.data(), dtype, walk, layouts, 0.25);
        CHECK(s.sum == tree_sum(logical, 0.25));
        CHECK_FALSE(s.bad);

        Elements x = before;
        const GradTensor grad{x.data(), dtype};
        const GradientsProblem p{&walk, layouts.data(), &grad, 1, 0.25};
        CHECK_FALSE(FULGURITE_VARIANT::amp_unscale(p, 0, 64 + numel / 3));
        CHECK_FALSE(FULGURITE_VARIANT::amp_unscale(p, 64 + numel / 3, 64 + numel));
        Elements expected = before;  // a quarter is exact in every type
        for (int64_t i = 0; i < numel; ++i)
          expected.set(i / n * column + i % n * step, logical[static_cast<size_t>(i)] / 4);
        for (int64_t i = 0; i < kColumns * column; ++i) CHECK(x[i] == expected[i]);

        if (n == 0) continue;
        x.set((kColumns - 1) * column + (n - 1) * step, NAN);  // the last one
        CHECK(stats(x.data(), dtype, walk, layouts, 0.25).bad);
        CHECK(FULGURITE_VARIANT::amp_unscale(p, 64, 64 + numel));
      }
}
