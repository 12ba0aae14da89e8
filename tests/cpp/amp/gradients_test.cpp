// Statistics and unscaling of gradients: the tree of the sum, and bad elements at every position.
#include <cmath>
#include <limits>
#include <vector>

#include "amp/cpu/kernels/params.h"
#include "catch.h"

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

Stats stats(std::vector<float>& x, double inv_scale) {
  const Walk walk{0, static_cast<int64_t>(x.size()), 0, 0};
  const GradTensor grad{x.data(), Dtype::kFloat32};
  Stats s{};
  FULGURITE_VARIANT::amp_grad_stats({&walk, nullptr, &grad, inv_scale, &s.sum, &s.bad}, 0, 0, 0);
  return s;
}

bool unscale(std::vector<float>& x, double inv_scale) {
  const Walk walk{0, static_cast<int64_t>(x.size()), 0, 0};
  const GradTensor grad{x.data(), Dtype::kFloat32};
  return FULGURITE_VARIANT::amp_unscale({&walk, nullptr, &grad, 1, inv_scale}, 0, walk.numel);
}

/// The tree in plain code: 16 lanes, then halves.
double tree_sum(const std::vector<float>& x, double inv_scale) {
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
