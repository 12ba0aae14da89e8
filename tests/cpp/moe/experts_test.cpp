// The kernels of the experts alone, on two experts whose sizes are no multiple of anything, against
// plain loops.
#include "catch.h"
#include "moe/cpu/kernels/experts_common.h"
#include "scratch.h"
#include "stored.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
GatherTaskFn moe_experts_gather;
HiddenTaskFn moe_experts_hidden, moe_experts_grad_hidden;
HiddenLayoutFn moe_experts_hidden_layout;
ReduceTaskFn moe_experts_reduce;
ReduceLayoutFn moe_experts_reduce_layout;
GradWeightTaskFn moe_experts_grad_weight;
GradWeightLayoutFn moe_experts_grad_weight_layout;
}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite

using namespace fulgurite;
using namespace fulgurite::FULGURITE_VARIANT;

namespace {

// 100 tokens with one expert each, odd ones expert 1: more rows than a block of tokens, columns
// than a block of I and of H.
struct Case {
  static constexpr int64_t T = 100, E = 2, H = 70, I = 67, rows = T / E;
  Rows x = numbers<Rows>(T * H, 1, 0.5), w_in = numbers<Rows>(E * 2 * I * H, 2, 0.5),
       w_out = numbers<Rows>(E * H * I, 3, 0.5);
  Sums weights = numbers<Sums>(T, 4, 0.5);
  std::vector<int32_t> permutation;
  std::vector<int64_t> offsets{0, rows, T};
  std::vector<Segment> segments{{0, 0, rows}, {1, rows, rows}};
  static constexpr int64_t width = pad_depth<Operand<Storage>>(I);
  Sums hidden = Sums(T * 2 * I);
  Rows activated = Rows(T * width);

  Case() {
    for (int64_t e = 0; e < E; ++e)
      for (int64_t t = e; t < T; t += E) permutation.push_back(static_cast<int32_t>(t));
  }

  SortedRows gathered(const Rows& rows) const {
    return {{rows.data(), H, 1}, permutation.data(), 1, false};
  }
  /// Rows of tokens, sorted, as the hidden layer takes them.
  static constexpr int64_t gathered_width = pad_columns<Operand<Storage>>(H) + 16;
  Rows operands(const Rows& rows) const {
    Rows to(T * gathered_width, -1.0);
    moe_experts_gather({kDtype, H, gathered(rows), to.data(), gathered_width}, 0, 40);
    moe_experts_gather({kDtype, H, gathered(rows), to.data(), gathered_width}, 40, T);
    return to;
  }
  static SortedRows sorted(const Rows& operands) {
    return {{operands.data(), gathered_width, 1}, nullptr, 1, true};
  }
  Rows sorted_x;
  HiddenParams params() {
    HiddenParams p{};
    sorted_x = operands(x);
    p.dtype = kDtype;
    p.gated = true;
    p.row_width = width;
    p.grad_width = 2 * I;
    p.dot_parts = 2;
    p.H = H;
    p.I = I;
    p.segments = segments.data();
    p.permutation = permutation.data();
    p.x = sorted(sorted_x);
    p.w_in = {w_in.data(), 2 * I * H, H, 1};
    p.w_out = {w_out.data(), H * I, I, 1};
    p.hidden = hidden.data();
    p.activated = activated.data();
    return p;
  }
  static double dot(const Cell<Storage>* a, const Cell<Storage>* b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
    return sum;
  }
  double gate(int64_t e, int64_t t, int64_t i) const {
    return dot(&w_in[(e * 2 * I + i) * H], &x[t * H], H);
  }
  double up(int64_t e, int64_t t, int64_t i) const {
    return dot(&w_in[(e * 2 * I + I + i) * H], &x[t * H], H);
  }
};

}  // namespace

TEST_CASE("sorted rows are padded with zeros") {
  const Case c;
  const Rows sorted = c.operands(c.x);
  for (int64_t row = 0; row < Case::T; ++row)
    for (int64_t i = 0; i < pad_columns<Operand<Storage>>(Case::H); ++i)
      REQUIRE(sorted[row * Case::gathered_width + i] ==
              (i < Case::H ? double{c.x[c.permutation[row] * Case::H + i]} : 0.0));
}

TEST_CASE("hidden layer") {
  Case c;
  const HiddenParams p = c.params();
  HiddenLayout layout;
  moe_experts_hidden_layout(p, &layout);
  run(moe_experts_hidden, p, 2 * ceil_div(Case::I, kHiddenBlock), layout.hidden);
  for (int64_t row = 0; row < Case::T; ++row)
    for (int64_t i = 0; i < Case::I; ++i) {
      const int64_t e = row / Case::rows, t = c.permutation[row];
      const double g = c.gate(e, t, i), u = c.up(e, t, i);
      REQUIRE(near(c.hidden[row * 2 * Case::I + i], g));
      REQUIRE(near(c.hidden[row * 2 * Case::I + Case::I + i], u));
      REQUIRE(near(c.activated[row * Case::width + i], g / (1 + std::exp(-g)) * u));
    }

  SECTION("its gradients equal differences") {
    const Rows grad = numbers<Rows>(Case::T * Case::H, 5, 0.5);
    Rows grad_hidden(Case::T * 2 * Case::I);
    Sums dots(Case::T * 2);
    HiddenParams q = c.params();
    const Rows sorted_grad = c.operands(grad);
    q.grad = Case::sorted(sorted_grad);
    q.weights = c.weights.data();
    q.need_grad = true;
    q.grad_hidden = grad_hidden.data();
    q.dots = dots.data();
    run(moe_experts_grad_hidden, q, 2 * ceil_div(Case::I, kHiddenBlock), layout.grad_hidden);
    for (int64_t row = 0; row < Case::T; row += 13) {
      const int64_t e = row / Case::rows, t = c.permutation[row];
      double dot = 0;
      for (int64_t i = 0; i < Case::I; ++i) {
        double dh = 0;
        for (int64_t o = 0; o < Case::H; ++o)
          dh += grad[t * Case::H + o] * c.w_out[(e * Case::H + o) * Case::I + i];
        const auto h = [&](double g, double u) { return g / (1 + std::exp(-g)) * u; };
        const double g = c.gate(e, t, i), u = c.up(e, t, i), step = 1e-5, w = c.weights[t];
        dot += dh * h(g, u);
        REQUIRE(near(c.activated[row * Case::width + i], w * h(g, u)));
        const auto equal = [](double actual, double difference) {
          return kExact ? std::fabs(actual - difference) < 1e-9 : near(actual, difference);
        };
        REQUIRE(equal(grad_hidden[row * 2 * Case::I + i],
                      w * dh * (h(g + step, u) - h(g - step, u)) / (2 * step)));
        REQUIRE(equal(grad_hidden[row * 2 * Case::I + Case::I + i],
                      w * dh * (h(g, u + step) - h(g, u - step)) / (2 * step)));
      }
      REQUIRE(near(dots[row * 2] + dots[row * 2 + 1], dot));
    }
  }
}

TEST_CASE("rows reduce to tokens in ranges of tokens") {
  Case c;
  Rows rows = numbers<Rows>(Case::T * Case::width, 6, 0.5), out(Case::T * Case::H);
  for (int64_t row = 0; row < Case::T; ++row)
    for (int64_t i = Case::I; i < Case::width; ++i) rows[row * Case::width + i] = 0;
  ReduceParams p{};
  p.dtype = kDtype;
  p.T = Case::T;
  p.K = 1;
  p.E = Case::E;
  p.H = Case::H;
  p.depth = Case::I;
  p.row_width = Case::width;
  p.token_range = 33;
  p.permutation = c.permutation.data();
  p.offsets = c.offsets.data();
  p.rows = rows.data();
  p.b = {c.w_out.data(), Case::H * Case::I, 1, Case::I};
  const Rows bias = numbers<Rows>(Case::E * Case::H, 8, 0.5);
  p.bias = {bias.data(), Case::H, 1};
  p.weights = c.weights.data();
  p.out = out.data();
  int64_t scratch;
  moe_experts_reduce_layout(p, &scratch);
  run(moe_experts_reduce, p, 4 * ceil_div(Case::H, kHiddenBlock), scratch);
  for (int64_t row = 0; row < Case::T; ++row)
    for (int64_t o = 0; o < Case::H; ++o) {
      const int64_t e = row / Case::rows, t = c.permutation[row];
      REQUIRE(near(out[t * Case::H + o],
                   c.weights[t] * (Case::dot(&rows[row * Case::width],
                                             &c.w_out[(e * Case::H + o) * Case::I], Case::I) +
                                   bias[e * Case::H + o])));
    }

  SECTION("and go on from part to part") {
    const Rows whole = out;
    Sums sums(Case::T * Case::H, -1.0);
    ReduceParams part = p;
    part.E = 1;
    part.after = sums.data();
    part.out = nullptr;
    run(moe_experts_reduce, part, 4 * ceil_div(Case::H, kHiddenBlock), scratch);
    const std::vector<int64_t> offsets{0, Case::rows};
    part.offsets = offsets.data();
    part.permutation += Case::rows;
    part.rows = rows.data() + Case::rows * Case::width;
    part.b.data = c.w_out.data() + Case::H * Case::I;
    part.bias.data = bias.data() + Case::H;
    part.before = sums.data();
    part.after = nullptr;
    part.out = out.data();
    out.assign(out.size(), -1.0);
    run(moe_experts_reduce, part, 4 * ceil_div(Case::H, kHiddenBlock), scratch);
    for (size_t i = 0; i < whole.size(); ++i) REQUIRE(double{out[i]} == double{whole[i]});
  }
}

TEST_CASE("gradients of the weights") {
  Case c;
  c.offsets = {0, Case::T, Case::T};  // the second expert has no rows
  const Rows a = numbers<Rows>(Case::T * 2 * Case::I, 7, 0.5);
  Rows grad(Case::E * 2 * Case::I * Case::H, 1.0);
  GradWeightParams p{};
  p.dtype = kDtype;
  p.M = 2 * Case::I;
  p.N = Case::H;
  p.offsets = c.offsets.data();
  p.a = {{a.data(), 2 * Case::I, 1}, nullptr, 1, true};
  p.b = c.gathered(c.x);
  p.grad = grad.data();
  int64_t scratch;
  moe_experts_grad_weight_layout(p, &scratch);
  run(moe_experts_grad_weight, p, Case::E * ceil_div(p.M, kGradRows) * ceil_div(p.N, kGradColumns),
      scratch);
  for (int64_t m = 0; m < p.M; ++m)
    for (int64_t n = 0; n < p.N; ++n) {
      double sum = 0;
      for (int64_t row = 0; row < Case::T; ++row)
        sum += a[row * p.M + m] * c.x[c.permutation[row] * Case::H + n];
      REQUIRE(near(grad[m * p.N + n], sum));
      REQUIRE(grad[(p.M + m) * p.N + n] == 0);
    }
}
