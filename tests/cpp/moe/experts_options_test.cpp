// What the options of the experts add to experts_test.cpp: biases, gates beside ups, no gates, and products alone.
#include <cmath>

#include "catch.h"
#include "moe/cpu/kernels/experts_common.h"
#include "scratch.h"
#include "stored.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
GatherTaskFn moe_experts_gather;
HiddenTaskFn moe_experts_hidden, moe_experts_grad_hidden, moe_experts_bias_dots;
HiddenLayoutFn moe_experts_hidden_layout;
GradBiasTaskFn moe_experts_grad_bias;
GroupedTaskFn moe_grouped_mm;
GroupedLayoutFn moe_grouped_mm_layout;
}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite

using namespace fulgurite;
using namespace fulgurite::FULGURITE_VARIANT;

namespace {

constexpr int64_t kRows = 100, kExperts = 2, kH = 37, kI = 67;

/// kRows tokens with one expert each, in the order of the tokens backwards; the first 30 rows are expert 0's.
struct Options {
  Rows x = numbers<Rows>(kRows * kH, 1, 0.5), w_in = numbers<Rows>(kExperts * 2 * kI * kH, 2, 0.4),
       b_in = numbers<Rows>(kExperts * 2 * kI, 5, 0.7), grad = numbers<Rows>(kRows * kH, 6, 0.5),
       w_out = numbers<Rows>(kExperts * kH * kI, 3, 0.4), b_out = numbers<Rows>(kExperts * kH, 7);
  Sums weights = numbers<Sums>(kRows, 4, 0.5), hidden = Sums(kRows * 2 * kI),
       dots = Sums(kRows * 3);
  static constexpr int64_t width = pad_depth<Operand<Storage>>(kI);
  Rows activated = Rows(kRows * width), grad_hidden = Rows(kRows * 2 * kI);
  Rows sorted_x, sorted_grad;
  std::vector<int32_t> permutation;
  std::vector<int64_t> offsets{0, 30, kRows};
  std::vector<Segment> segments{{0, 0, 30}, {1, 30, kRows - 30}};
  HiddenParams p{};
  HiddenLayout layout{};

  Options(Activation activation, bool gated, bool interleaved) {
    for (int64_t t = kRows; t-- > 0;) permutation.push_back(static_cast<int32_t>(t));
    p.dtype = kDtype;
    p.activation = {activation, 1.5, 0.5};
    p.gated = gated;
    p.interleaved = interleaved;
    p.H = kH;
    p.I = kI;
    p.segments = segments.data();
    p.permutation = permutation.data();
    p.x = sorted(x, sorted_x);
    p.grad = sorted(grad, sorted_grad);
    const int64_t rows = gated ? 2 * kI : kI;
    p.w_in = {w_in.data(), rows * kH, 1, rows};  // stored as (E,H,rows)
    p.w_out = {w_out.data(), kH * kI, kI, 1};
    p.b_in = {b_in.data(), rows, 1};
    p.b_out = {b_out.data(), kH, 1};
    p.weights = weights.data();
    p.hidden = hidden.data();
    p.activated = activated.data();
    p.row_width = width;
    p.grad_hidden = grad_hidden.data();
    p.grad_width = gated ? 2 * kI : width;
    p.dots = dots.data();
    p.dot_parts = 3;
    p.need_grad = true;
    moe_experts_hidden_layout(p, &layout);
  }
  /// Rows of tokens as the hidden layer takes them, kept in `to`.
  SortedRows sorted(const Rows& rows, Rows& to) const {
    const int64_t ld = pad_columns<Operand<Storage>>(kH);
    to.resize(kRows * ld);
    moe_experts_gather({kDtype, kH, gathered(rows), to.data(), ld}, 0, kRows);
    return {{to.data(), ld, 1}, nullptr, 1, true};
  }
  SortedRows gathered(const Rows& rows) const {
    return {{rows.data(), kH, 1}, permutation.data(), 1, false};
  }
  int64_t expert(int64_t row) const { return row < 30 ? 0 : 1; }
  /// Column c of W_in x + b_in.
  double pre(int64_t row, int64_t c) const {
    const int64_t n = p.gated ? 2 * kI : kI, e = expert(row);
    double sum = b_in[e * n + c];
    for (int64_t k = 0; k < kH; ++k)
      sum += w_in[(e * kH + k) * n + c] * x[permutation[row] * kH + k];
    return sum;
  }
  double gate(int64_t row, int64_t i) const { return pre(row, p.interleaved ? 2 * i : i); }
  double up(int64_t row, int64_t i) const { return pre(row, p.interleaved ? 2 * i + 1 : kI + i); }
};

double oai(double g, double u) {
  const double gate = std::fmin(g, 0.5), up = std::fmax(-0.5, std::fmin(u, 0.5));
  return gate / (1 + std::exp(-1.5 * gate)) * (up + 1);
}

}  // namespace

TEST_CASE("pairs of gate and up, transposed weights, biases") {
  Options o(Activation::kSwigluOai, true, true);
  const int64_t tasks = 2 * ceil_div(kI, kHiddenBlock);
  run(moe_experts_hidden, o.p, tasks, o.layout.hidden);
  for (int64_t row = 0; row < kRows; row += 7)
    for (int64_t i = 0; i < kI; ++i) {
      REQUIRE(near(o.hidden[row * 2 * kI + 2 * i], o.gate(row, i)));
      REQUIRE(near(o.hidden[row * 2 * kI + 2 * i + 1], o.up(row, i)));
      REQUIRE(near(o.activated[row * o.width + i], oai(o.gate(row, i), o.up(row, i))));
    }
  run(moe_experts_grad_hidden, o.p, tasks, o.layout.grad_hidden);
  run(moe_experts_bias_dots, o.p, 2, 0);
  const double step = kExact ? 1e-6 : 1e-4;
  for (int64_t row = 0; row < kRows; row += 7) {
    const int64_t e = o.expert(row), t = o.permutation[row];
    double dot = 0;
    for (int64_t c = 0; c < kH; ++c) dot += o.grad[t * kH + c] * o.b_out[e * kH + c];
    REQUIRE(near(o.dots[row * 3 + 2], dot));
    for (int64_t i = 0; i < kI; ++i) {
      const double g = o.gate(row, i), u = o.up(row, i);
      if (std::fabs(std::fabs(g) - 0.5) < 0.01 || std::fabs(std::fabs(u) - 0.5) < 0.01) continue;
      double dh = 0;
      for (int64_t c = 0; c < kH; ++c) dh += o.grad[t * kH + c] * o.w_out[(e * kH + c) * kI + i];
      const double w = o.weights[t];
      const auto equal = [](double a, double b) {
        return kExact ? std::fabs(a - b) < 1e-8 : near(a, b);
      };
      REQUIRE(equal(o.grad_hidden[row * 2 * kI + 2 * i],
                    w * dh * (oai(g + step, u) - oai(g - step, u)) / (2 * step)));
      REQUIRE(equal(o.grad_hidden[row * 2 * kI + 2 * i + 1],
                    w * dh * (oai(g, u + step) - oai(g, u - step)) / (2 * step)));
    }
  }
}

TEST_CASE("no gates") {
  Options o(Activation::kRelu2, false, false);
  run(moe_experts_hidden, o.p, 2 * ceil_div(kI, kHiddenBlock), o.layout.hidden);
  for (int64_t row = 0; row < kRows; ++row)
    for (int64_t i = 0; i < kI; ++i) {
      const double positive = std::fmax(o.gate(row, i), 0);
      REQUIRE(near(o.hidden[row * kI + i], o.gate(row, i)));
      REQUIRE(near(o.activated[row * o.width + i], positive * positive));
    }
}

TEST_CASE("gradients of biases") {
  Options o(Activation::kSilu, true, false);
  o.offsets = {0, kRows, kRows};  // the second expert has no rows
  Rows grad(kExperts * kH, 1.0);
  GradBiasParams p{};
  p.dtype = kDtype;
  p.N = kH;
  p.offsets = o.offsets.data();
  p.rows = o.gathered(o.grad);
  p.weights = o.weights.data();
  p.grad = grad.data();
  run(moe_experts_grad_bias, p, kExperts * ceil_div(kH, kBiasColumns), 0);
  for (int64_t c = 0; c < kH; ++c) {
    double sum = 0;
    for (int64_t t = 0; t < kRows; ++t) sum += o.weights[t] * o.grad[t * kH + c];
    REQUIRE(near(grad[c], sum));
    REQUIRE(grad[kH + c] == 0);
  }
}

TEST_CASE("a product for each expert") {
  Options o(Activation::kSilu, true, false);
  const int64_t n = 2 * kI;
  Rows out(kRows * n);
  GroupedParams p{};
  p.dtype = kDtype;
  p.depth = kH;
  p.N = n;
  p.segments = o.segments.data();
  p.x = {{o.x.data(), kH, 1}, nullptr, 1, false};
  p.b = {o.w_in.data(), n * kH, n, 1};
  p.bias = {o.b_in.data(), n, 1};
  p.out = out.data();
  int64_t scratch;
  moe_grouped_mm_layout(p, &scratch);
  run(moe_grouped_mm, p, 2 * ceil_div(n, kGroupedColumns), scratch);
  for (int64_t row = 0; row < kRows; ++row)
    for (int64_t c = 0; c < n; ++c) {
      const int64_t e = o.expert(row);
      double sum = o.b_in[e * n + c];
      for (int64_t k = 0; k < kH; ++k) sum += o.x[row * kH + k] * o.w_in[(e * kH + k) * n + c];
      REQUIRE(near(out[row * n + c], sum));
    }
}
