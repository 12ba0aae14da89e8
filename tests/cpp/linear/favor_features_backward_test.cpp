// Gradients of random features against slopes of plain loops.
#include "catch.h"
#include "features_problem.h"
#include "scratch.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
FavorBackwardTaskFn favor_features_backward;
FavorBackwardLayoutFn favor_features_backward_layout;
FavorSumsFn favor_projection_sums;
}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite

using namespace fulgurite;
using namespace fulgurite::FULGURITE_VARIANT;

namespace {

struct Backward {
  FeatureCase q;
  const FeatureSizes& size = q.size;
  int64_t positions = q.heads * size.N;
  Elements out{q.dtype, positions * q.features},
      grad_out = Elements::sines(q.dtype, positions* q.features, 5),
      grad_x{q.dtype, positions * size.D}, grad_projection{q.of_projection, size.m * size.D};
  std::vector<double> constants;

  explicit Backward(const FeatureCase& c) : q(c) {
    for (int64_t i = 0; i < positions; ++i) {
      constants.push_back(q.constant(i / size.N, i % size.N));
      for (int64_t j = 0; j < q.features; ++j)
        out.set(i * q.features + j, q.feature(i / size.N, i % size.N, j, constants.back()));
    }
  }
  Backward(const Backward&) = delete;

  void run() {
    FavorBackwardParams p{};
    q.describe(p);
    Elements sums(q.sums, p.parts.group_count * size.m * size.D + 1);
    p.out = out.data();
    p.grad_out = grad_out.data();
    p.grad_x = grad_x.data();
    p.sums = sums.data();
    p.grad_projection = grad_projection.data();
    int64_t bytes = 0;
    favor_features_backward_layout(p, &bytes);
    fulgurite::run(favor_features_backward, p, p.parts.group_count, bytes);
    favor_projection_sums(p, 0, size.m / 2);
    favor_projection_sums(p, size.m / 2, size.m);
  }
  /// Of positions [first, last).
  double loss(int64_t first, int64_t last) const {
    double sum = 0;
    for (int64_t i = first; i < last; ++i)
      for (int64_t j = 0; j < q.features; ++j)
        sum += grad_out[i * q.features + j] *
               q.feature(i / size.N, i % size.N, j, constants[static_cast<size_t>(i)]);
    return sum;
  }
  void compare() {
    // Features are read as they are stored.
    const double rounded = q.dtype == Dtype::kFloat64   ? 0
                           : q.dtype == Dtype::kFloat32 ? 1e-6
                           : q.dtype == Dtype::kFloat16 ? 2e-3
                                                        : 2e-2;
    for (int64_t i = 0; i < positions; ++i)
      for (int64_t d = 0; d < size.D; ++d) {
        q.nudged_x = q.at(i / size.N, i % size.N, d);
        const double expected = slope([&](double h) {
          q.nudge = h;
          return loss(i, i + 1);
        });
        REQUIRE(near(q.dtype, grad_x[i * size.D + d], expected, kSlopeError + rounded));
      }
    q.nudged_x = -1;
    for (int64_t i = 0; i < size.m * size.D; ++i) {
      q.nudged_projection = i;
      const double expected = slope([&](double h) {
        q.nudge = h;
        return loss(0, positions);
      });
      REQUIRE(
          near(q.of_projection, grad_projection[i], expected, kSlopeError + rounded * positions));
    }
  }
};

void check(const FeatureCase& c) {
  INFO("dtype " << int(c.dtype) << ", N " << c.size.N << ", D " << c.size.D << ", m " << c.size.m
                << ", hyperbolic " << c.hyperbolic << ", stride " << c.strides.position);
  Backward backward(c);
  backward.run();
  backward.compare();
}

}  // namespace

TEST_CASE("gradients of features of every layout") {
  for (const Dtype dtype : kDtypes)
    for (const FeatureOrder order : kFeatureOrders)
      for (const bool hyperbolic : {false, true}) {
        check({dtype, {2, 2, 3, 4, 6}, order, true, hyperbolic, false});
        check({dtype, {1, 1, 5, 9, 19}, order, false, hyperbolic, true});
      }
}

TEST_CASE("gradients of several blocks, and of a pack") {
  check({Dtype::kFloat32, {1, 1, 60, 2, 3}, FeatureOrder::kPlain, false, false, false});
  for (const Dtype dtype : kDtypes)
    check({dtype, {1, 2, 30, 3, 4, 7}, FeatureOrder::kPlain, false, true, false});
}
