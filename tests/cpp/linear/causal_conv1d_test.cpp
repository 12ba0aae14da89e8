// Causal convolutions against plain loops: widths below and above the length, every layout, packs, states.
#include "catch.h"
#include "conv_problem.h"
#include "scratch.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
CausalConv1dTaskFn causal_conv1d;
CausalConv1dLayoutFn causal_conv1d_layout;
}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite

using namespace fulgurite;

namespace {

struct Result {
  Elements out, state;
};

Result convolved(const ConvProblem& problem) {
  const int64_t outputs = problem.B * problem.C * problem.L,
                kept = problem.sequences * problem.C * (problem.W - 1);
  Result r{Elements(problem.dtype, outputs + 8, kUnwritten),
           Elements(problem.dtype, kept + 8, kUnwritten)};
  CausalConv1dParams p{};
  problem.describe(p);
  p.out = r.out.data();
  p.state = r.state.data();
  int64_t bytes = 0;
  FULGURITE_VARIANT::causal_conv1d_layout(p, &bytes);
  run(FULGURITE_VARIANT::causal_conv1d, p, conv_tasks(p), bytes);
  for (int64_t i = 0; i < 8; ++i) {
    REQUIRE(r.out[outputs + i] == kUnwritten);
    REQUIRE(r.state[kept + i] == kUnwritten);
  }
  return r;
}

void check(const ConvProblem& q) {
  INFO("dtype " << int(q.dtype) << ", B " << q.B << ", C " << q.C << ", L " << q.L << ", W " << q.W
                << ", sequences " << q.sequences << ", strides " << q.x.channel << ", "
                << q.x.position);
  const Result r = convolved(q);
  for (int64_t s = 0; s < q.sequences; ++s) {
    const Span span = q.span(s);
    for (int64_t c = 0; c < q.C; ++c) {
      for (int64_t t = 0; t < span.length; ++t)
        REQUIRE(near(q.dtype, r.out[(span.batch * q.C + c) * q.L + span.start + t],
                     q.act(q.pre(s, c, t))));
      for (int64_t j = 0; j < q.W - 1; ++j)
        REQUIRE(r.state[(s * q.C + c) * (q.W - 1) + j] ==
                q.input(s, c, span.length - (q.W - 1) + j));
    }
  }
}

}  // namespace

TEST_CASE("outputs and states of every width and layout") {
  for (const Dtype dtype : kDtypes)
    for (const SignalOrder order : kSignalOrders)
      for (const int64_t W : {1, 2, 4, 7})
        for (const int64_t L : {0, 1, 2, 5, 16, 130}) {
          check({dtype, 2, 5, L, W, order, true, true, true, false});
          check({dtype, 1, 37, L, W, order, false, false, false, true});
        }
}

TEST_CASE("long sequences, wide filters") {
  for (const SignalOrder order : kSignalOrders) {
    for (const Dtype dtype : kDtypes) {
      check({dtype, 1, 3, 2100, 4, order, true, true, true, false});
      check({dtype, 2, 2, 40, 300, order, true, true, true, false});
    }
    check({Dtype::kBFloat16, 1, 33, 300, 150, order, true, false, true, true});
  }
}

TEST_CASE("sequences of a pack do not see each other") {
  for (const Dtype dtype : kDtypes)
    for (const SignalOrder order : kSignalOrders)
      for (const int64_t split : {1, 2, 17})
        check({dtype, 1, 6, 40, 4, order, true, true, true, false, split});
}
