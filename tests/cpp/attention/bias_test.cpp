// The gradient of a bias, on each of the ways that its shape asks for, against plain loops over the pairs.
#include "attention/problem.h"

using namespace fulgurite;
using namespace fulgurite::attention_test;

namespace {

constexpr int64_t kRows = 110, kKeys = 600;

/// The first sequence alone: what has a bias has one size.
struct BiasProblem : Problem {
  Rows grad_bias;
  Sums parts_of_bias;

  explicit BiasProblem(const int64_t (&shape)[4]) : Problem(false) {
    add_bias(shape, 2);
    grad_bias = Rows(bias.size());
    p.B = p.batch_stride = 1;
    p.query_blocks = 3;
    p.key_blocks = 5;
    p.rule.window_left = 200;
    p.grad_bias = grad_bias.data();
  }

  Numbers expected() const {
    Numbers sums(bias.size());
    for (int64_t h = 0; h < Hq; ++h) {
      const Numbers w = weights(h);
      for_pairs([&](int64_t i, int64_t j) {
        if (i >= kRows) return;
        const int64_t row = h * N + i;
        const double delta = dot(&grad_out[row * Dv], &out[row * Dv], Dv) - grad_lse[row];
        const double dp = dot(&grad_out[row * Dv], &value[j * Dv], Dv);
        sums[static_cast<size_t>(bias_index(0, h, i, j))] += w[i * M + j] * (dp - delta);
      });
    }
    return sums;
  }

  void check() const {
    const Numbers sums = expected();
    for (size_t e = 0; e < sums.size(); ++e) REQUIRE(near(grad_bias[e], sums[e]));
  }
};

}  // namespace

TEST_CASE("a bias of every pair is written where it belongs") {
  BiasProblem problem({1, Problem::Hq, kRows, kKeys});
  problem.p.stores_bias = true;
  problem.forward();
  problem.backward();
  problem.check();
}

TEST_CASE("a bias of which tasks own parts is added up by them, and the parts after them") {
  const int64_t heads = GENERATE(int64_t{1}, Problem::Hq), rows = GENERATE(int64_t{1}, kRows);
  BiasProblem problem({1, heads, rows, kKeys});
  problem.parts_of_bias = Sums(problem.bias.size());
  problem.p.grad_bias_parts = problem.parts_of_bias.data();
  problem.forward();
  problem.backward();
  const int64_t chunks = (heads * rows * kKeys + kBiasChunk - 1) / kBiasChunk;
  problem.run(FULGURITE_VARIANT::attention_reduce_bias, chunks, 0);
  problem.check();
}

TEST_CASE("a bias that broadcasts over heads, rows or keys has a pass of its own") {
  const int64_t heads = GENERATE(int64_t{1}, Problem::Hq), rows = GENERATE(int64_t{1}, kRows),
                keys = GENERATE(int64_t{1}, kKeys);
  BiasProblem problem({1, heads, rows, keys});
  problem.forward();
  problem.backward();
  const int64_t tasks = heads * (rows == 1 ? 1 : 3) * (keys == 1 ? 1 : 5);
  problem.run(FULGURITE_VARIANT::attention_grad_bias, tasks, problem.layout.grad_bias_scratch);
  problem.check();
}
