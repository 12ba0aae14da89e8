// The forward kernel alone against plain loops.
#include "attention/problem.h"

using namespace fulgurite;
using namespace fulgurite::attention_test;

namespace {

void check_forward(Problem& problem) {
  problem.forward();
  const int64_t N = Problem::N, Dv = Problem::Dv;
  for (int64_t h = 0; h < Problem::Hq; ++h) {
    const double sink = problem.p.sink ? std::exp(problem.sink[h]) : 0;
    Numbers sum(N, sink), out(N * Dv);
    problem.for_pairs([&](int64_t i, int64_t j) {
      const double weight = std::exp(problem.score(h, i, j));
      sum[i] += weight;
      for (int64_t d = 0; d < Dv; ++d) out[i * Dv + d] += weight * problem.value[j * Dv + d];
    });
    for (int64_t i = 0; i < N; ++i) {
      REQUIRE(near(problem.lse[h * N + i], std::log(sum[i])));
      for (int64_t d = 0; d < Dv; ++d)
        REQUIRE(near(problem.out[(h * N + i) * Dv + d], sum[i] > 0 ? out[i * Dv + d] / sum[i] : 0));
    }
  }
}

}  // namespace

TEST_CASE("every pair of packed sequences, with a sink") {
  Problem problem(GENERATE(false, true));
  check_forward(problem);
}

TEST_CASE("causal with a window and sink tokens across tiles") {
  Problem problem(GENERATE(false, true));
  problem.p.rule.causal = true;
  problem.p.rule.window_left = 10;
  problem.p.rule.sink_tokens = 3;
  check_forward(problem);
}

TEST_CASE("rows that keep nothing: more queries than keys, no sink") {
  Problem problem(GENERATE(false, true));
  problem.sequences[1].M = 4;
  problem.p.rule.causal = true;
  problem.p.sink = nullptr;
  check_forward(problem);
}

TEST_CASE("a hidden NaN does not leak, a kept one does") {
  const bool packs_in_tasks = GENERATE(false, true);
  Problem clean(packs_in_tasks), dirty(packs_in_tasks);
  clean.p.rule.causal = dirty.p.rule.causal = true;
  dirty.value[550 * Problem::Dv] = std::nan("");  // seen from query 60 of the first sequence on
  dirty.key[599 * Problem::D] = std::nan("");     // seen by the last query of the first sequence
  clean.forward();
  dirty.forward();
  for (int64_t i = 0; i < Problem::N; ++i) {
    const bool kept = i >= 60 && i < 110;
    REQUIRE(std::isnan(dirty.out[i * Problem::Dv]) == kept);
    REQUIRE(std::isnan(dirty.out[i * Problem::Dv + 1]) == (i == 109));
    if (!kept) REQUIRE(dirty.out[i * Problem::Dv] == clean.out[i * Problem::Dv]);
    if (i != 109) REQUIRE(dirty.lse[i] == clean.lse[i]);
  }
}
