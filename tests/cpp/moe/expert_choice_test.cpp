// The kernel of expert choice alone, and the order in which experts serve.
#include <cmath>
#include <limits>
#include <vector>

#include "catch.h"
#include "moe/cpu/kernels/expert_choice.h"
#include "moe/rules/order.h"
#include "simd/kernel.h"

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
  int64_t T, E;
  std::vector<double> logits, scores, scratch;

  Problem(int64_t tokens, int64_t experts) : T(tokens), E(experts) {
    for (int64_t i = 0; i < T * E; ++i) logits.push_back(std::sin(static_cast<double>(i * 7 + 3)));
    scores.resize(static_cast<size_t>(T * E));
    scratch.resize(static_cast<size_t>(kExpertChoiceRows * padded_row(E) + 8));
  }
  ExpertChoiceParams params() {
    ExpertChoiceParams p{};
    p.dtype = Dtype::kFloat64;
    p.T = T;
    p.E = E;
    p.logits = {logits.data(), E, 1};
    p.scores = scores.data();
    return p;
  }
  void* memory() {
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(scratch.data()) + 63) / 64 * 64);
  }
  double score(int64_t t, int64_t e) const { return scores[e * T + t]; }
};

}  // namespace

TEST_CASE("scores are the softmax of a token, laid out by expert") {
  for (const int64_t E : {1, 3, 8, 17, 40}) {
    Problem problem(5, E);
    moe_expert_choice(problem.params(), 0, 5, problem.memory());
    for (int64_t t = 0; t < 5; ++t) {
      double total = 0;
      for (int64_t e = 0; e < E; ++e) total += std::exp(problem.logits[t * E + e]);
      for (int64_t e = 0; e < E; ++e)
        REQUIRE(std::fabs(problem.score(t, e) - std::exp(problem.logits[t * E + e]) / total) <
                1e-15);
    }
  }
}

TEST_CASE("gradients equal differences, and are zero for a token that nobody took") {
  Problem problem(3, 5);
  const std::vector<double> g{0.5, -1.0, 0.0, 2.0, 0.25, 0, 0, 0, 0, 0, 0.0, 0.0, 1.5, 0.0, -0.75};
  const auto loss = [&](std::vector<double> moved) {
    Problem other(3, 5);
    other.logits = std::move(moved);
    moe_expert_choice(other.params(), 0, 3, other.memory());
    double sum = 0;
    for (int64_t t = 0; t < 3; ++t)
      for (int64_t e = 0; e < 5; ++e) sum += t == 1 ? 0 : g[t * 5 + e] * other.score(t, e);
    return sum;
  };
  const std::vector<double> logits = problem.logits;
  for (int64_t e = 0; e < 5; ++e) problem.logits[5 + e] = kNan;
  const std::vector<uint8_t> taken{1, 0, 1};
  std::vector<double> grad(15, kNan);
  ExpertChoiceParams p = problem.params();
  p.taken = taken.data();
  p.grad_scores = g.data();
  p.grad_logits = grad.data();
  moe_expert_choice_backward(p, 0, 3, problem.memory());
  for (size_t i = 0; i < 15; ++i) {
    std::vector<double> up = logits, down = logits;
    up[i] += 1e-5;
    down[i] -= 1e-5;
    const double expected = i / 5 == 1 ? 0 : (loss(up) - loss(down)) / 2e-5;
    REQUIRE(std::fabs(grad[i] - expected) < 1e-9);
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
