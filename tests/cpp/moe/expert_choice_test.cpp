// The kernel of expert choice alone, and the order in which experts serve.
#include <cmath>
#include <limits>
#include <vector>

#include "catch.h"
#include "moe/cpu/kernels/expert_choice.h"
#include "moe/rules/order.h"
#include "moe/table.h"
#include "scratch.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
ExpertChoiceFn moe_expert_choice, moe_expert_choice_backward;
}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite

using namespace fulgurite;
using namespace fulgurite::FULGURITE_VARIANT;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN(),
                 kInf = std::numeric_limits<double>::infinity();

struct Problem {
  Dtype dtype;
  int64_t T, E;
  Table logits;
  Elements scores;
  Scratch scratch;

  Problem(Dtype dtype, int64_t T, int64_t E, Order order)
      : dtype(dtype),
        T(T),
        E(E),
        logits(dtype, T, E, order, 7, 3),
        scores(accumulate(dtype), T * E + 20, 99),
        scratch(kExpertChoiceRows * padded_row(E) * 8) {}
  ExpertChoiceParams params() {
    ExpertChoiceParams p{};
    p.dtype = dtype;
    p.T = T;
    p.E = E;
    p.logits = logits.matrix();
    p.scores = scores.data();
    return p;
  }
  std::vector<double> row(int64_t t) const {
    std::vector<double> x;
    for (int64_t e = 0; e < E; ++e) x.push_back(logits(t, e));
    return x;
  }
};

double softmax(const std::vector<double>& row, int64_t e) {
  double total = 0;
  for (const double x : row) total += std::exp(x);
  return std::exp(row[static_cast<size_t>(e)]) / total;
}

}  // namespace

TEST_CASE("scores are the softmax of a token, laid out by expert") {
  for (const Dtype dtype : kDtypes)
    for (const int64_t T : {0, 1, 3, 4, 5, 15, 16, 17, 33})
      for (const int64_t E : {1, 3, 8, 17, 40})
        for (const Order order : kOrders) {
          INFO("dtype " << int(dtype) << ", T " << T << ", E " << E << ", order " << int(order));
          Problem problem(dtype, T, E, order);
          moe_expert_choice(problem.params(), 0, T / 3, problem.scratch.data());
          moe_expert_choice(problem.params(), T / 3, T, problem.scratch.data());
          for (int64_t t = 0; t < T; ++t)
            for (int64_t e = 0; e < E; ++e)
              REQUIRE(
                  near(accumulate(dtype), problem.scores[e * T + t], softmax(problem.row(t), e)));
          for (int64_t i = 0; i < 20; ++i) REQUIRE(problem.scores[T * E + i] == 99);
        }
}

TEST_CASE("gradients equal differences, and are zero for a token that nobody took") {
  for (const Dtype dtype : kDtypes)
    for (const int64_t E : {1, 5, 15, 16, 17})
      for (const Order order : kOrders) {
        INFO("dtype " << int(dtype) << ", E " << E << ", order " << int(order));
        constexpr int64_t T = 3;
        Problem problem(dtype, T, E, order);
        for (int64_t e = 0; e < E; ++e) problem.logits.set(1, e, kNan);
        const std::vector<uint8_t> taken{1, 0, 1};
        Elements g = Elements::sines(accumulate(dtype), T * E, 2), grad(dtype, T * E, kNan);
        for (int64_t e = 0; e < E; ++e) g.set(E + e, 0);
        ExpertChoiceParams p = problem.params();
        p.taken = taken.data();
        p.grad_scores = g.data();
        p.grad_logits = grad.data();
        moe_expert_choice_backward(p, 0, 2, problem.scratch.data());
        moe_expert_choice_backward(p, 2, T, problem.scratch.data());
        for (int64_t i = 0; i < T * E; ++i) {
          const int64_t t = i / E;
          const auto moved = [&](double h) {
            std::vector<double> x = problem.row(t);
            x[static_cast<size_t>(i % E)] += h;
            double loss = 0;
            for (int64_t e = 0; e < E; ++e) loss += g[t * E + e] * softmax(x, e);
            return loss;
          };
          REQUIRE(near(dtype, grad[i], taken[t] ? slope(moved) : 0, kSlopeError));
        }
      }
}

TEST_CASE("the larger goes first, NaN last, the earlier among equals") {
  const std::vector<double> values{kNan, -kInf, 0.0, -0.0, kInf, 1.0, kNan, 1.0};
  const std::vector<int32_t> order{4, 5, 7, 2, 3, 1, 0, 6};
  for (int64_t places = 0; places <= 8; ++places) {
    std::vector<Candidate> first = select_first(
        8, places, [&](int64_t i) { return Candidate{values[i], static_cast<int32_t>(i)}; });
    std::sort(first.begin(), first.end(), goes_before);
    REQUIRE(static_cast<int64_t>(first.size()) == places);
    for (int64_t i = 0; i < places; ++i) REQUIRE(first[i].index == order[i]);
  }
}

TEST_CASE("a selection that is made several times is the sorted one") {
  for (const int64_t places : {1, 7, 60, 400, 999, 1000}) {
    const auto rising = [](int64_t i) {
      return Candidate{static_cast<double>(i / 3 % 200), static_cast<int32_t>(i)};
    };
    std::vector<Candidate> all, first = select_first(1000, places, rising);
    for (int64_t i = 0; i < 1000; ++i) all.push_back(rising(i));
    std::sort(all.begin(), all.end(), goes_before);
    std::sort(first.begin(), first.end(), goes_before);
    REQUIRE(static_cast<int64_t>(first.size()) == places);
    for (int64_t i = 0; i < places; ++i) REQUIRE(first[i].index == all[i].index);
  }
}
