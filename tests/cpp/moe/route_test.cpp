// The routing kernel alone: the rules of the choice, and gradients against differences.
#include <cmath>
#include <limits>
#include <vector>

#include "catch.h"
#include "moe/cpu/kernels/rows.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
RouteTaskFn moe_route, moe_route_backward;
RouteLayoutFn moe_route_layout;
}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite

using namespace fulgurite;
using namespace fulgurite::FULGURITE_VARIANT;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN(),
                 kInf = std::numeric_limits<double>::infinity();

struct Routed {
  std::vector<double> weights;
  std::vector<int32_t> ids;
  std::vector<int64_t> counts;
};

/// Scratch of a task, from an address that is a multiple of 64.
struct Scratch {
  std::vector<char> memory;
  explicit Scratch(const RouteParams& p) {
    int64_t bytes = 0;
    moe_route_layout(p, &bytes);
    memory.resize(static_cast<size_t>(bytes) + 64);
  }
  void* data() {
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
  }
};

RouteParams params(const std::vector<double>& row, int64_t K, Score score) {
  RouteParams p{};
  p.dtype = Dtype::kFloat64;
  p.T = 1;
  p.E = static_cast<int64_t>(row.size());
  p.K = K;
  p.score = score;
  p.n_group = p.topk_group = 1;
  p.renormalize = true;
  p.scale = 1;
  p.logits = {row.data(), p.E, 1};
  return p;
}

Routed route(RouteParams p) {
  Routed r{std::vector<double>(static_cast<size_t>(p.K)),
           std::vector<int32_t>(static_cast<size_t>(p.K)),
           std::vector<int64_t>(static_cast<size_t>(p.E))};
  p.weights = r.weights.data();
  p.ids = r.ids.data();
  p.counts = r.counts.data();
  Scratch memory(p);
  moe_route(p, 0, 1, memory.data());
  return r;
}

using Ids = std::vector<int32_t>;

}  // namespace

TEST_CASE("ties go to the lowest index and NaN ranks below minus infinity") {
  const std::vector<double> row{0.0, -0.0, kNan, 5.0, -kInf, 5.0, kInf, 1.0, kNan};
  REQUIRE(route(params(row, 9, Score::kSoftmax)).ids == Ids{6, 3, 5, 7, 0, 1, 4, 2, 8});
  const std::vector<double> nothing(7, kNan);
  REQUIRE(route(params(nothing, 3, Score::kSigmoid)).ids == Ids{0, 1, 2});
}

TEST_CASE("a choice among many experts is the sorted one") {
  for (const int64_t E : {1, 3, 16, 17, 63, 256}) {
    std::vector<double> row;
    for (int64_t e = 0; e < E; ++e) row.push_back(static_cast<double>((e * 37 + 11) % 101));
    Ids expected;
    for (int64_t j = 0; j < E; ++j) {  // the largest that is left, the first among equals
      int32_t best = -1;
      for (int32_t e = 0; e < E; ++e) {
        bool taken = false;
        for (const int32_t x : expected) taken |= x == e;
        if (!taken && (best < 0 || row[e] > row[best])) best = e;
      }
      expected.push_back(best);
    }
    REQUIRE(route(params(row, E, Score::kSoftmax)).ids == expected);
  }
}

TEST_CASE("experts of other groups are never chosen") {
  const std::vector<double> row{1.0, kNan, 2.0, 3.0, 100.0, -100.0};
  RouteParams p = params(row, 2, Score::kSoftmax);
  p.n_group = 3;
  p.topk_group = 1;
  p.group_sum = true;
  REQUIRE(route(p).ids == Ids{3, 2});  // sums NaN, 5, 0
  p.group_sum = false;
  REQUIRE(route(p).ids == Ids{4, 5});  // maxima 1, 3, 100
}

TEST_CASE("scores") {
  const std::vector<double> x{-kInf, -745.0, -50.0, -40.0, -39.99, -1.0,
                              0.0,   1e-9,   2.0,   40.0,  700.0};
  for (const double value : x) {
    const double sigmoid_of = sigmoid(splat<Native<double>>(value))[0],
                 root = sqrt_softplus(splat<Native<double>>(value))[0];
    const double exact =
        value < -30 ? std::exp(value / 2)
                    : std::sqrt(std::log1p(std::exp(-std::fabs(value))) + std::fmax(value, 0));
    INFO(value);
    const double small = std::exp(-std::fabs(value));  // e^745 would overflow
    REQUIRE(std::fabs(sigmoid_of - (value < 0 ? small : 1) / (1 + small)) <= 4e-16 * sigmoid_of);
    REQUIRE(std::fabs(root - exact) <= 1e-15 * exact);
    REQUIRE(std::isfinite(unary_score_slope(Score::kSqrtSoftplus, splat<Native<double>>(value),
                                            splat<Native<double>>(root))[0]));
  }
  // float32, where the series has fewer terms
  for (float value = -19.9f; value < 30.f; value += 0.37f) {
    const double exact = std::sqrt(std::log1p(std::exp(-std::fabs(static_cast<double>(value)))) +
                                   std::fmax(value, 0.f));
    const float root = sqrt_softplus(splat<Native<float>>(value))[0];
    INFO(value);
    REQUIRE(std::fabs(root - exact) <= 3e-7 * exact);
  }
}

TEST_CASE("gradients equal differences") {
  const std::vector<double> row{0.3, -0.7, 1.1, 0.2, -1.5, 0.9, 0.05};
  const std::vector<double> g{0.7, -1.3, 0.4};
  for (const Score score :
       {Score::kSoftmax, Score::kSoftmaxTopk, Score::kSigmoid, Score::kSqrtSoftplus})
    for (const bool renormalize : {true, false}) {
      RouteParams p = params(row, 3, score);
      p.renormalize = renormalize;
      p.scale = 2.5;
      const Routed at = route(p);
      const auto loss = [&](std::vector<double> moved) {
        RouteParams q = p;
        q.logits.data = moved.data();
        q.forced = at.ids.data();
        const Routed r = route(q);
        return g[0] * r.weights[0] + g[1] * r.weights[1] + g[2] * r.weights[2];
      };
      std::vector<double> grad(row.size());
      Scratch memory(p);
      p.chosen = {at.ids.data(), p.K, 1};
      p.grad_weights = {g.data(), p.K, 1};
      p.grad_logits = grad.data();
      moe_route_backward(p, 0, 1, memory.data());
      for (size_t e = 0; e < row.size(); ++e) {
        std::vector<double> up = row, down = row;
        up[e] += 1e-5;
        down[e] -= 1e-5;
        REQUIRE(std::fabs(grad[e] - (loss(up) - loss(down)) / 2e-5) < 1e-8);
      }
    }
}
