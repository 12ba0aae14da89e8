// What routers and experts share over devices, on plain numbers and by the C library: what a thread of a device that has no vectors
// computes.
#include <cmath>
#include <limits>
#include <vector>

#include "catch.h"
#include "moe/rules/activations.h"
#include "moe/rules/balance.h"
#include "moe/rules/order_key.h"
#include "moe/rules/route_weights.h"
#include "std_math.h"

using namespace fulgurite;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN(),
                 kInf = std::numeric_limits<double>::infinity();

template <class T>
bool near(T a, double b) {
  return std::fabs(static_cast<double>(a) - b) <=
         (sizeof(T) == 8 ? 1e-13 : 4e-6) * (1 + std::fabs(b));
}

double logistic(double x) { return 1 / (1 + std::exp(-x)); }

double exact_activation(Activation kind, double g) {
  switch (kind) {
    case Activation::kSilu: return g * logistic(g);
    case Activation::kGelu: return g * 0.5 * std::erfc(-g * std::sqrt(0.5));
    case Activation::kGeluTanh:
      return 0.5 * g * (1 + std::tanh(std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g)));
    case Activation::kRelu: return std::fmax(g, 0);
    case Activation::kRelu2: return std::fmax(g, 0) * std::fmax(g, 0);
    case Activation::kSwigluOai: return std::fmin(g, 2) * logistic(1.702 * std::fmin(g, 2));
  }
  return kNan;
}

double exact_score(Score score, double x) {
  switch (score) {
    case Score::kSoftmax:
    case Score::kSoftmaxTopk: return x;
    case Score::kSigmoid: return logistic(x);
    case Score::kSqrtSoftplus:
      return std::sqrt(std::fmax(x, 0) + std::log1p(std::exp(-std::fabs(x))));
  }
  return kNan;
}

}  // namespace

TEMPLATE_TEST_CASE("activations of numbers are those of the formulas, and slopes their derivatives",
                   "[rules]", float, double) {
  using T = TestType;
  for (const auto& [name, kind] : kActivations)
    with_activation({kind, 1.702, 2}, [&, name = name, kind = kind](const auto& act) {
      INFO(name);
      const auto exact = [&](double g) { return exact_activation(kind, g); };
      for (double g = -9.01; g < 9; g += 0.07) {
        const T at = static_cast<T>(g);
        const Curve<T> curve = act.template curve<StdMath>(at);
        REQUIRE(near(act.template value<StdMath>(at), exact(at)));
        REQUIRE(curve.value == act.template value<StdMath>(at));
        REQUIRE(std::fabs(curve.slope - slope_of(exact, at)) < 1e-5);
      }
      REQUIRE(std::isnan(act.template value<StdMath>(static_cast<T>(kNan))));
    });
}

TEST_CASE("only swiglu_oai has an up of its own") {
  with_activation({Activation::kSilu, 0, 0}, [](const auto& act) {
    CHECK(act.template up<StdMath>(7.0) == 7);
    CHECK(act.template through_up<StdMath>(3.0, 7.0) == 3);
  });
  with_activation({Activation::kSwigluOai, 1.702, 2}, [](const auto& act) {
    CHECK(act.template up<StdMath>(-5.0) == -1);
    CHECK(act.template up<StdMath>(kInf) == 3);
    CHECK(std::isnan(act.template up<StdMath>(kNan)));
    CHECK(act.template through_up<StdMath>(3.0, -2.5) == 0);
    CHECK(act.template through_up<StdMath>(3.0, -2.0) == 3);
  });
  with_activation({Activation::kSwigluOai, 1, 0},
                  [](const auto& act) { CHECK(act.template up<StdMath>(1e30) == 1e30 + 1); });
}

TEMPLATE_TEST_CASE("scores of single experts and their slopes", "[rules]", float, double) {
  using T = TestType;
  for (const auto& [name, score] : kScores)
    for (double x = -60; x < 60; x += 0.37) {
      INFO(name << " of " << x);
      const T at = static_cast<T>(x), s = own_score<StdMath>(score, at);
      const double exact = exact_score(score, at);
      REQUIRE(std::fabs(s - exact) <= (sizeof(T) == 8 ? 1e-14 : 4e-7) * std::fabs(exact));
      const double by_differences =
          slope_of([score = score](double y) { return exact_score(score, y); }, at);
      REQUIRE(std::fabs(own_score_slope<StdMath>(score, at, s) - by_differences) <=
              1e-6 + 1e-5 * std::fabs(by_differences));
    }
  CHECK((is_softmax(Score::kSoftmax) && is_softmax(Score::kSoftmaxTopk)));
  CHECK_FALSE((is_softmax(Score::kSigmoid) || is_softmax(Score::kSqrtSoftplus)));
}

TEMPLATE_TEST_CASE("keys are in the order of the numbers", "[rules]", float, double) {
  using T = TestType;
  const T rising[] = {static_cast<T>(-kInf),
                      std::numeric_limits<T>::lowest(),
                      -2,
                      -1,
                      -std::numeric_limits<T>::denorm_min(),
                      0,
                      std::numeric_limits<T>::denorm_min(),
                      1,
                      static_cast<T>(kInf)};
  Integer<T> before = kNanKey<T>;
  CHECK((order_key(static_cast<T>(kNan)) == kNanKey<T> && kNanKey<T> > kOut<T>));
  for (const T x : rising) {
    CHECK(order_key(x) > before);
    CHECK(number_of<T>(order_key(x)) == x);
    before = order_key(x);
  }
  CHECK(order_key(T(-0.0)) == order_key(T(0)));
  CHECK(std::isnan(number_of<T>(kNanKey<T>)));
}

TEMPLATE_TEST_CASE("a group is as good as its best two experts, or as its best", "[rules]", float,
                   double) {
  using T = TestType;
  const Integer<T> keys[] = {order_key(T(1)), order_key(T(-4)), order_key(T(3)), order_key(T(2))};
  const auto group = [&](int64_t members, GroupScore score) {
    return number_of<T>(group_key<T>(keys, members, score));
  };
  CHECK(group(4, GroupScore::kTop2) == 5);
  CHECK(group(4, GroupScore::kMax) == 3);
  CHECK(group(2, GroupScore::kTop2) == -3);
  CHECK(group(1, GroupScore::kTop2) == 1);
}

TEMPLATE_TEST_CASE("weights of a token and their gradients", "[rules]", float, double) {
  using T = TestType;
  constexpr int64_t kChosen = 3;
  const std::vector<double> logits{0.5, -1.25, 2, 0.75, -3};
  for (const auto& [name, score] : kScores)
    for (const bool renormalize : {false, true}) {
      INFO(name << (renormalize ? ", renormalized" : ""));
      RouteProblem p{};
      p.E = 5;
      p.K = kChosen;
      p.score = score;
      p.renormalize = renormalize;
      p.eps = 0.125;
      Integer<T> ids[kChosen] = {2, 5, 0};  // the second is a sentinel
      T x[kChosen], scores[kChosen], weights[kChosen], grads[kChosen] = {T(0.5), 0, -2};
      double all = 0;
      for (const double l : logits) all += std::exp(l - 2);
      for (int64_t j = 0; j < kChosen; ++j)
        x[j] = static_cast<T>(ids[j] < p.E ? logits[static_cast<size_t>(ids[j])] : -kInf);
      Chosen<T> c{ids, x, scores, weights, grads, T(2), static_cast<T>(all)};

      const auto exact = [&, score = score](double a, double b, int64_t j) {
        const double pair[] = {a, 0, b};
        const auto one = [&](double l) {
          return is_softmax(score) ? std::exp(l - 2) : exact_score(score, l);
        };
        double total = one(a) + one(b);
        if (is_over_all(p)) total = all;
        if (!is_softmax(score)) total = renormalize ? total + p.eps : 1;
        return one(pair[j]) / total;
      };
      weigh_chosen<StdMath>(p, c);
      CHECK(near(weights[0], exact(2, 0.5, 0)));
      CHECK(weights[1] == 0);
      CHECK(near(weights[2], exact(2, 0.5, 2)));
      if (is_over_all(p)) continue;  // their gradient is one of all logits
      grad_chosen<StdMath>(p, c);
      const auto loss = [&](double a, double b) {
        return 0.5 * exact(a, b, 0) - 2 * exact(a, b, 2);
      };
      CHECK(std::fabs(grads[0] - slope_of([&](double a) { return loss(a, 0.5); }, 2)) < 1e-5);
      CHECK(std::fabs(grads[2] - slope_of([&](double b) { return loss(2, b); }, 0.5)) < 1e-5);
    }
}

TEST_CASE("a sum keeps what its additions round off") {
  ExactSum<StdMath, float> sum;
  for (int i = 0; i < 1000; ++i) {
    sum.add(1e8f);
    sum.add(1.0f);
  }
  for (int i = 0; i < 1000; ++i) sum.add(-1e8f);
  CHECK(sum.value() == 1000.0f);
  ExactSum<StdMath, float> infinite;
  infinite.add(INFINITY);
  infinite.add(1.0f);
  CHECK(infinite.value() == INFINITY);
}

TEST_CASE("shares of assignments") {
  const int64_t E = 8, K = 2, tokens = 5;
  CHECK(assignment_share(BalanceKind::kSwitch, E, K, tokens) == 8.0 / (10 * 5));
  CHECK(assignment_share(BalanceKind::kHf, E, K, tokens) == 8.0 / (5 * 5));
  CHECK(assignment_share(BalanceKind::kGshard, E, K, tokens) == 8.0 / (5 * 5));
  CHECK(assignment_share(BalanceKind::kSequence, E, K, tokens, 4) == 8.0 / (10 * 5 * 4));
  for (const auto& [name, kind] : kBalanceKinds)
    CHECK(counted_choices(kind, K) == (kind == BalanceKind::kGshard ? 1 : K));
  CHECK(counted_choices(BalanceKind::kGshard, 0) == 0);
}

TEST_CASE("coefficients of cv2 are the slopes of its loss") {
  std::vector<double> m{3, 1, 4, 1.5};
  const Cv2 cv2(m.data(), 4);
  CHECK(cv2.mean == 2.375);
  CHECK(cv2.loss() == Approx(1.8958333333 / (2.375 * 2.375)));
  for (size_t e = 0; e < m.size(); ++e) {
    const double at = m[e], expected = slope_of(
                                [&](double x) {
                                  m[e] = x;
                                  return Cv2(m.data(), 4).loss();
                                },
                                at);
    m[e] = at;
    CHECK(cv2.coefficient(at) == Approx(expected).epsilon(1e-7));
  }
}

TEST_CASE("the bias moves by the rate, or by its part of it") {
  const auto update = [](BiasRule rule, int64_t count) {
    return bias_update(rule, 0.5, 4, count, 8);
  };
  CHECK(update(BiasRule::kSign, 1) == 0.5);
  CHECK(update(BiasRule::kSign, 2) == 0);
  CHECK(update(BiasRule::kSign, 5) == -0.5);
  CHECK(update(BiasRule::kProportional, 1) == 0.25);
  CHECK(update(BiasRule::kProportional, 2) == 0);
  CHECK(update(BiasRule::kProportional, 4) == -0.5);
}
