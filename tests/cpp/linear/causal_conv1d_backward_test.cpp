// Gradients of the causal convolution against plain loops: all inputs, from the output and from the state.
#include "catch.h"
#include "conv_problem.h"
#include "scratch.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
CausalConv1dBackwardTaskFn causal_conv1d_backward;
CausalConv1dBackwardLayoutFn causal_conv1d_backward_layout;
CausalConv1dSumsFn causal_conv1d_sums;
}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite

using namespace fulgurite;
using namespace fulgurite::FULGURITE_VARIANT;

namespace {

struct Gradients {
  Elements x, initial, weight, bias;
};

struct Backward {
  ConvProblem q;
  TestSignal grad_out, grad_state;

  Backward(const ConvProblem& problem, SignalOrder order)
      : q(problem),
        grad_out(q.dtype, q.B, q.C, q.L, order, 5),
        grad_state(q.dtype, q.sequences, q.C, q.W - 1, order, 6) {}

  Gradients run() const {
    const int64_t kept = q.sequences * q.C * (q.W - 1);
    Gradients g{Elements(q.dtype, q.B * q.C * q.L + 1, kUnwritten),
                Elements(q.dtype, kept + 1, kUnwritten),
                Elements(q.parameters, q.C * q.W + 1, kUnwritten),
                Elements(q.parameters, q.C + 1, kUnwritten)};
    CausalConv1dBackwardParams p{};
    q.describe(p);
    p.grad_out = grad_out.signal();
    p.grad_state = grad_state.signal();
    p.grad_x = g.x.data();
    p.grad_initial_state = g.initial.data();
    p.grad_weight = g.weight.data();
    p.grad_bias = g.bias.data();
    Elements sums(accumulate(q.dtype), p.parts.group_count * q.C * (q.W + 1) + 1);
    p.sums = sums.data();
    int64_t bytes = 0;
    causal_conv1d_backward_layout(p, &bytes);
    fulgurite::run(causal_conv1d_backward, p, conv_tasks(p), bytes);
    causal_conv1d_sums(p, 0, q.C / 2);
    causal_conv1d_sums(p, q.C / 2, q.C);
    REQUIRE(g.x[q.B * q.C * q.L] == kUnwritten);
    REQUIRE(g.initial[kept] == kUnwritten);
    REQUIRE(g.weight[q.C * q.W] == kUnwritten);
    REQUIRE(g.bias[q.C] == kUnwritten);
    return g;
  }

  /// The gradient of pre_t.
  double d(int64_t s, int64_t c, int64_t t) const {
    const Span span = q.span(s);
    if (t >= span.length) return 0;
    const double g = grad_out(span.batch, c, span.start + t);
    return q.silu ? g * slope([&](double h) { return q.act(q.pre(s, c, t) + h); }) : g;
  }
  /// Of input t of sequence s, before its first for t < 0.
  double grad_input(int64_t s, int64_t c, int64_t t) const {
    const int64_t kept = q.span(s).length - (q.W - 1);
    double sum = t >= kept ? grad_state(s, c, t - kept) : 0;
    for (int64_t w = 0; w < q.W; ++w)
      if (t + q.W - 1 - w >= 0) sum += q.weight(0, c, w) * d(s, c, t + q.W - 1 - w);
    return sum;
  }

  void check_inputs(const Gradients& g) const {
    for (int64_t s = 0; s < q.sequences; ++s) {
      const Span span = q.span(s);
      for (int64_t c = 0; c < q.C; ++c) {
        for (int64_t t = 0; t < span.length; ++t)
          REQUIRE(near(q.dtype, g.x[(span.batch * q.C + c) * q.L + span.start + t],
                       grad_input(s, c, t), kSlopeError));
        for (int64_t j = 0; j < q.W - 1; ++j)
          REQUIRE(near(q.dtype, g.initial[(s * q.C + c) * (q.W - 1) + j],
                       grad_input(s, c, j - (q.W - 1)), kSlopeError));
      }
    }
  }
  void check_parameters(const Gradients& g) const {
    for (int64_t c = 0; c < q.C; ++c)
      for (int64_t w = 0; w <= q.W; ++w) {
        double sum = 0, size = 0;
        for (int64_t s = 0; s < q.sequences; ++s)
          for (int64_t t = 0; t < q.span(s).length; ++t) {
            const double term = d(s, c, t) * (w < q.W ? q.input(s, c, t - q.W + 1 + w) : 1);
            sum += term;
            size += std::fabs(term);
          }
        const double actual = w < q.W ? g.weight[c * q.W + w] : g.bias[c];
        REQUIRE(near(q.parameters, actual, sum, kSlopeError + 1e-6 * size));
      }
  }
  void check() const {
    INFO("dtype " << int(q.dtype) << ", B " << q.B << ", C " << q.C << ", L " << q.L << ", W "
                  << q.W << ", sequences " << q.sequences << ", strides " << q.x.channel << ", "
                  << q.x.position);
    const Gradients g = run();
    check_inputs(g);
    check_parameters(g);
  }
};

}  // namespace

TEST_CASE("gradients of every width and layout") {
  for (const Dtype dtype : kDtypes)
    for (const SignalOrder order : kSignalOrders)
      for (const int64_t W : {1, 2, 4, 7})
        for (const int64_t L : {0, 1, 2, 5, 16, 130}) {
          Backward({dtype, 2, 5, L, W, order, true, true, true, false}, order).check();
          Backward({dtype, 1, 37, L, W, order, false, true, true, true},
                   SignalOrder::kPositionsLast)
              .check();
        }
}

TEST_CASE("gradients across pieces, and of wide filters") {
  for (const SignalOrder order : kSignalOrders) {
    Backward({Dtype::kFloat32, 1, 3, 2100, 4, order, true, true, true, false}, order).check();
    Backward({Dtype::kFloat32, 2, 2, 40, 150, order, true, true, true, false}, order).check();
  }
}

TEST_CASE("gradients stay within a sequence of a pack") {
  for (const Dtype dtype : kDtypes)
    for (const int64_t split : {1, 2, 17})
      Backward({dtype, 1, 6, 40, 4, SignalOrder::kChannelsLast, true, true, true, false, split},
               SignalOrder::kPositionsLast)
          .check();
}
