// The routing kernel alone: the rules of the choice, and gradients against differences.
#include <cmath>
#include <limits>
#include <vector>

#include "catch.h"
#include "elements.h"
#include "moe/cpu/kernels/rows.h"
#include "moe/rules/scores.h"
#include "scratch.h"

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

using Ids = std::vector<int32_t>;
using Numbers = std::vector<double>;

int64_t scratch_of(const RouteParams& p) {
  int64_t bytes = 0;
  moe_route_layout(p, &bytes);
  return bytes;
}

/// T tokens; the logits of token t are `row` times 1 − t/64.
struct Router {
  int64_t T, E, K;
  Elements logits, weights;
  Ids ids;
  std::vector<int64_t> counts;
  RouteParams p{};

  Router(Dtype dtype, const Numbers& row, int64_t K, Score score, int64_t T = 1)
      : T(T),
        E(static_cast<int64_t>(row.size())),
        K(K),
        logits(dtype, T * E),
        weights(accumulate(dtype), T * K),
        ids(static_cast<size_t>(T * K)),
        counts(row.size()) {
    for (int64_t i = 0; i < T * E; ++i)
      logits.set(i, row[static_cast<size_t>(i % E)] * (1 - static_cast<double>(i / E) / 64));
    p.dtype = dtype;
    p.T = T;
    p.E = E;
    p.K = K;
    p.score = score;
    p.n_group = p.topk_group = 1;
    p.renormalize = true;
    p.scale = 1;
    p.logits = {logits.data(), E, 1};
    p.weights = weights.data();
    p.ids = ids.data();
    p.counts = counts.data();
  }
  void route() {
    Scratch scratch(scratch_of(p));
    moe_route(p, 0, T / 3, scratch.data());
    moe_route(p, T / 3, T, scratch.data());
  }
};

Ids ids_of(Router router) {
  router.p.logits.data = router.logits.data();
  router.p.weights = router.weights.data();
  router.p.ids = router.ids.data();
  router.p.counts = router.counts.data();
  router.route();
  return router.ids;
}

/// The weights of chosen experts, in float64.
Numbers weights_of(const RouteParams& p, const Numbers& row, const int32_t* chosen) {
  const bool softmax = p.score == Score::kSoftmax || p.score == Score::kSoftmaxTopk;
  const auto score = [&](double x) {
    if (softmax) return std::exp(x);
    if (p.score == Score::kSigmoid) return 1 / (1 + std::exp(-x));
    return std::sqrt(std::log1p(std::exp(x)));
  };
  Numbers w;
  double total = softmax ? 0 : p.eps;
  for (int64_t j = 0; j < p.K; ++j) {
    w.push_back(score(row[static_cast<size_t>(chosen[j])]));
    total += w.back();
  }
  if (p.score == Score::kSoftmax && !p.renormalize) {
    total = 0;
    for (const double x : row) total += std::exp(x);
  }
  const bool divided = softmax || p.renormalize;
  for (double& x : w) x *= p.scale / (divided ? total : 1);
  return w;
}

}  // namespace

TEST_CASE("ties go to the lowest index and NaN ranks below minus infinity") {
  for (const Dtype dtype : kDtypes) {
    const Numbers row{0.0, -0.0, kNan, 5.0, -kInf, 5.0, kInf, 1.0, kNan};
    REQUIRE(ids_of(Router(dtype, row, 9, Score::kSoftmax)) == Ids{6, 3, 5, 7, 0, 1, 4, 2, 8});
    REQUIRE(ids_of(Router(dtype, Numbers(7, kNan), 3, Score::kSigmoid)) == Ids{0, 1, 2});
  }
}

TEST_CASE("a choice among many experts is the sorted one") {
  for (const Dtype dtype : kDtypes)
    for (const int64_t E : {1, 3, 15, 16, 17, 63, 256}) {
      Numbers row;
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
      REQUIRE(ids_of(Router(dtype, row, E, Score::kSoftmax)) == expected);
    }
}

TEST_CASE("experts of other groups are never chosen") {
  for (const Dtype dtype : kDtypes) {
    Router router(dtype, {1.0, kNan, 2.0, 3.0, 100.0, -100.0}, 2, Score::kSoftmax);
    router.p.n_group = 3;
    router.p.topk_group = 1;
    router.p.group_score = GroupScore::kTop2;
    REQUIRE(ids_of(router) == Ids{3, 2});  // sums NaN, 5, 0
    router.p.group_score = GroupScore::kMax;
    REQUIRE(ids_of(router) == Ids{4, 5});  // maxima 1, 3, 100
  }
}

TEST_CASE("scores") {
  const std::vector<double> x{-kInf, -745.0, -50.0, -40.0, -39.99, -1.0,
                              0.0,   1e-9,   2.0,   40.0,  700.0};
  for (const double value : x) {
    const double sigmoid_of = sigmoid(splat<Native<double>>(value))[0],
                 root = sqrt_softplus<VectorMath>(splat<Native<double>>(value))[0];
    const double exact =
        value < -30 ? std::exp(value / 2)
                    : std::sqrt(std::log1p(std::exp(-std::fabs(value))) + std::fmax(value, 0));
    INFO(value);
    const double small = std::exp(-std::fabs(value));  // e^745 would overflow
    REQUIRE(std::fabs(sigmoid_of - (value < 0 ? small : 1) / (1 + small)) <= 4e-16 * sigmoid_of);
    REQUIRE(std::fabs(root - exact) <= 1e-15 * exact);
    REQUIRE(std::isfinite(own_score_slope<VectorMath>(
        Score::kSqrtSoftplus, splat<Native<double>>(value), splat<Native<double>>(root))[0]));
  }
  // float32, where the series has fewer terms
  for (float value = -19.9f; value < 30.f; value += 0.37f) {
    const double exact = std::sqrt(std::log1p(std::exp(-std::fabs(static_cast<double>(value)))) +
                                   std::fmax(value, 0.f));
    const float root = sqrt_softplus<VectorMath>(splat<Native<float>>(value))[0];
    INFO(value);
    REQUIRE(std::fabs(root - exact) <= 3e-7 * exact);
  }
}

TEST_CASE("weights, counts and gradients of every score") {
  for (const Dtype dtype : kDtypes)
    for (const Score score :
         {Score::kSoftmax, Score::kSoftmaxTopk, Score::kSigmoid, Score::kSqrtSoftplus})
      for (const bool renormalize : {true, false})
        for (const int64_t T : {0, 1, 5, 17}) {
          INFO("dtype " << int(dtype) << ", score " << int(score) << ", T " << T
                        << (renormalize ? ", renormalized" : ""));
          constexpr int64_t K = 3;
          Router router(dtype, {0.3, -0.7, 1.1, 0.2, -1.5, 0.9, 0.05}, K, score, T);
          router.p.renormalize = renormalize;
          router.p.eps = 0.25;
          router.p.scale = 2.5;
          router.route();
          const int64_t E = router.E;
          const auto row = [&](int64_t t) {
            Numbers x;
            for (int64_t e = 0; e < E; ++e) x.push_back(router.logits[t * E + e]);
            return x;
          };
          for (int64_t t = 0; t < T; ++t) {
            const Numbers w = weights_of(router.p, row(t), &router.ids[t * K]);
            for (int64_t j = 0; j < K; ++j)
              REQUIRE(near(accumulate(dtype), router.weights[t * K + j], w[j]));
          }
          int64_t routed = 0;
          for (const int64_t count : router.counts) routed += count;
          REQUIRE(routed == T * K);
          REQUIRE(router.counts[2] == T);  // the largest of every token

          const Elements g = Elements::sines(accumulate(dtype), T * K, 3);
          Elements grad(dtype, T * E, kNan);
          RouteParams& p = router.p;
          p.chosen = {router.ids.data(), K, 1};
          p.grad_weights = {g.data(), K, 1};
          p.grad_logits = grad.data();
          Scratch scratch(scratch_of(p));
          moe_route_backward(p, 0, T / 3, scratch.data());
          moe_route_backward(p, T / 3, T, scratch.data());
          for (int64_t i = 0; i < T * E; ++i) {
            const int64_t t = i / E;
            const double expected = slope([&](double h) {
              Numbers x = row(t);
              x[static_cast<size_t>(i % E)] += h;
              const Numbers w = weights_of(p, x, &router.ids[t * K]);
              return g[t * K] * w[0] + g[t * K + 1] * w[1] + g[t * K + 2] * w[2];
            });
            REQUIRE(near(dtype, grad[i], expected, kSlopeError));
          }
        }
}
