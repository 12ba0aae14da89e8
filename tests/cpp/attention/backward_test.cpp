// The backward kernels alone against plain loops over the pairs.
#include "attention/problem.h"

using namespace fulgurite;
using namespace fulgurite::attention_test;

namespace {

struct Gradients {
  Numbers query = Numbers(Problem::Hq * Problem::N * Problem::D),
          key = Numbers(Problem::M * Problem::D), value = Numbers(Problem::M * Problem::Dv),
          sink = Numbers(Problem::Hq);
};

Gradients plain_gradients(const Problem& problem) {
  const int64_t N = Problem::N, D = Problem::D, Dv = Problem::Dv;
  Gradients g;
  for (int64_t h = 0; h < Problem::Hq; ++h) {
    const auto delta = [&](int64_t i) {
      const int64_t row = h * N + i;
      return Problem::dot(&problem.grad_out[row * Dv], &problem.out[row * Dv], Dv) -
             problem.grad_lse[row];
    };
    const Numbers weights = problem.weights(h), sink_weights = problem.sink_weights(h);
    problem.for_pairs([&](int64_t i, int64_t j) {
      const int64_t row = h * N + i;
      const double p = weights[i * Problem::M + j];
      const double dp = Problem::dot(&problem.grad_out[row * Dv], &problem.value[j * Dv], Dv);
      const double ds = p * (dp - delta(i)) * problem.p.scale;
      for (int64_t d = 0; d < Dv; ++d) g.value[j * Dv + d] += p * problem.grad_out[row * Dv + d];
      for (int64_t d = 0; d < D; ++d) {
        g.query[row * D + d] += ds * problem.key[j * D + d];
        g.key[j * D + d] += ds * problem.query[row * D + d];
      }
    });
    for (int64_t i = 0; i < N; ++i) g.sink[h] -= sink_weights[i] * delta(i);
  }
  return g;
}

template <class V>
void require_near(const V& actual, const Numbers& expected) {
  for (size_t i = 0; i < expected.size(); ++i) REQUIRE(near(actual[i], expected[i]));
}

void check_backward(Problem& problem) {
  problem.forward();
  problem.backward();
  const Gradients expected = plain_gradients(problem);
  require_near(problem.grad_query, expected.query);
  require_near(problem.grad_key, expected.key);
  require_near(problem.grad_value, expected.value);
  require_near(problem.grad_sink, expected.sink);
}

}  // namespace

TEST_CASE("gradients over every pair of packed sequences") {
  Problem problem(GENERATE(false, true));
  check_backward(problem);
}

TEST_CASE("gradients under a causal window with sink tokens") {
  Problem problem(GENERATE(false, true));
  problem.p.rule.causal = true;
  problem.p.rule.window_left = 10;
  problem.p.rule.sink_tokens = 3;
  check_backward(problem);
}

TEST_CASE("keys that no query keeps get zeros") {
  Problem problem(GENERATE(false, true));
  problem.p.rule.window_left = 2;
  problem.forward();
  problem.backward();
  // The first sequence has 600 keys for 110 queries: those before 600 − 110 − 2 are out of reach.
  for (int64_t j = 0; j < 488; ++j) REQUIRE(problem.grad_key[j * Problem::D] == 0);
  REQUIRE(problem.grad_key[488 * Problem::D] != 0);
}

TEST_CASE("gradients of rows whose lse is too coarse: every row of P sums to 1") {
  // A bias of rows: sin(0.37·7·(i + 1)) times the size, so that some rows are large and some are not.
  const double size = GENERATE(1e3, 1e5, 1e9);
  Problem problem(GENERATE(false, true));
  problem.add_bias({1, 1, 110, 1}, size);
  for (int64_t i = 0; i < 110; ++i) problem.bias[i] = i % 7 < 3 ? 0.0 : double(problem.bias[i]);
  problem.p.sink = nullptr;
  problem.p.grad_sink = nullptr;
  problem.p.rule.causal = true;
  problem.forward();
  problem.backward();
  REQUIRE(problem.coarse_rows == 1);
  const Gradients expected = plain_gradients(problem);
  require_near(problem.grad_query, expected.query);
  require_near(problem.grad_key, expected.key);
  require_near(problem.grad_value, expected.value);
}
