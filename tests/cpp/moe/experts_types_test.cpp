// Every kernel of the experts in every type of the set, on few and on many rows, with weights of every layout, against plain loops.
// experts_test.cpp and experts_options_test.cpp hold what is said of them beside numbers.
#include <functional>

#include "catch.h"
#include "moe/cpu/kernels/experts_common.h"
#include "moe/table.h"
#include "scratch.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
GatherTaskFn moe_experts_gather;
HiddenTaskFn moe_experts_hidden, moe_experts_grad_hidden, moe_experts_bias_dots;
HiddenLayoutFn moe_experts_hidden_layout;
ReduceTaskFn moe_experts_reduce;
ReduceLayoutFn moe_experts_reduce_layout;
GradWeightTaskFn moe_experts_grad_weight;
GradWeightLayoutFn moe_experts_grad_weight_layout;
GradBiasTaskFn moe_experts_grad_bias;
GroupedTaskFn moe_grouped_mm;
GroupedLayoutFn moe_grouped_mm_layout;
}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite

using namespace fulgurite;
using namespace fulgurite::FULGURITE_VARIANT;

namespace {

constexpr int64_t kExperts = 3;

/// What the cases have in common: rows by expert, widths, and how matrices lie.
struct Shape {
  int64_t rows[kExperts];  // of each expert
  int64_t in, out;         // widths
};
constexpr Shape kShapes[] = {{{1, 0, 2}, 1, 1},
                             {{5, 1, 0}, 7, 15},
                             {{3, 13, 1}, 17, 16},
                             {{0, 30, 7}, 300, 17},
                             {{100, 1, 6}, 33, 70}};

/// Rows of T tokens with one expert each, sorted by expert: token T − 1 − r stands at position r.
struct Sorted {
  int64_t T;
  std::vector<int32_t> permutation, experts;
  std::vector<int64_t> offsets{0};
  std::vector<Segment> segments;

  explicit Sorted(const Shape& shape) {
    for (int64_t e = 0; e < kExperts; ++e) {
      if (shape.rows[e]) segments.push_back({e, offsets.back(), shape.rows[e]});
      offsets.push_back(offsets.back() + shape.rows[e]);
      experts.insert(experts.end(), static_cast<size_t>(shape.rows[e]), static_cast<int32_t>(e));
    }
    T = offsets.back();
    for (int64_t r = 0; r < T; ++r) permutation.push_back(static_cast<int32_t>(T - 1 - r));
  }
  int64_t token(int64_t row) const { return permutation[static_cast<size_t>(row)]; }
  int64_t expert(int64_t row) const { return experts[static_cast<size_t>(row)]; }
  int64_t tasks(int64_t columns, int64_t block) const {
    return static_cast<int64_t>(segments.size()) * ceil_div(columns, block);
  }
  SortedRows rows_of(const Table& table) const {
    return {table.matrix(), permutation.data(), 1, false};
  }
};

/// A matrix for each expert, one below the other.
ExpertMatrices experts_of(const Table& table) {
  const int64_t rows = table.rows / kExperts;
  return {table.x.data(), rows * table.row_stride, table.row_stride, table.column_stride};
}
/// A row for each expert, two elements apart.
ExpertRows bias_of(const Elements& bias, int64_t n) { return {bias.data(), 2 * n, 2}; }

/// Rows of a table at sorted positions, as operands padded with zeros.
struct Operands {
  int64_t width, ld;
  Elements x;

  Operands(Dtype dtype, int64_t rows, int64_t width)
      : width(width), ld((width + 47) / 32 * 32), x(operand(dtype), rows * ld) {}
  Operands(Dtype dtype, const Sorted& sorted, const Table& table)
      : Operands(dtype, sorted.T, table.columns) {
    for (int64_t r = 0; r < sorted.T; ++r)
      for (int64_t c = 0; c < width; ++c) x.set(r * ld + c, table(sorted.token(r), c));
  }
  double operator()(int64_t r, int64_t c) const { return x[r * ld + c]; }
  SortedRows rows() const { return {{x.data(), ld, 1}, nullptr, 1, true}; }
};

double sum_of(int64_t n, const std::function<double(int64_t)>& term) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += term(i);
  return sum;
}

void for_cases(const std::function<void(Dtype, const Shape&, Order)>& check) {
  for (const Dtype dtype : kDtypes)
    for (const Shape& shape : kShapes)
      for (const Order order : kOrders) {
        INFO("dtype " << int(dtype) << ", " << shape.in << " to " << shape.out << ", order "
                      << int(order));
        check(dtype, shape, order);
      }
}

}  // namespace

TEST_CASE("rows of every type and layout become operands") {
  for_cases([](Dtype dtype, const Shape& shape, Order order) {
    const Sorted sorted(shape);
    const Table x(dtype, sorted.T, shape.in, order, 1);
    const Operands expected(dtype, sorted, x);
    Operands to(dtype, sorted.T, shape.in);
    const GatherParams p{dtype, shape.in, sorted.rows_of(x), to.x.data(), to.ld};
    moe_experts_gather(p, 0, sorted.T / 2);
    moe_experts_gather(p, sorted.T / 2, sorted.T);
    for (int64_t i = 0; i < sorted.T * to.ld; ++i) REQUIRE(to.x[i] == expected.x[i]);
  });
}

TEST_CASE("a product for each expert, in every type and layout") {
  for_cases([](Dtype dtype, const Shape& shape, Order order) {
    const Sorted sorted(shape);
    const int64_t N = shape.out, K = shape.in;
    const Table x(dtype, sorted.T, K, order, 1, 0.5), b(dtype, kExperts * K, N, order, 2, 0.5);
    const Elements bias = Elements::sines(dtype, kExperts * 2 * N, 3);
    Elements out(dtype, sorted.T * N + 20, 99);
    GroupedParams p{};
    p.dtype = dtype;
    p.depth = K;
    p.N = N;
    p.segments = sorted.segments.data();
    p.x = sorted.rows_of(x);
    p.b = experts_of(b);
    p.bias = bias_of(bias, N);
    p.out = out.data();
    int64_t scratch = 0;
    moe_grouped_mm_layout(p, &scratch);
    run(moe_grouped_mm, p, sorted.tasks(N, kGroupedColumns), scratch);
    for (int64_t r = 0; r < sorted.T; ++r)
      for (int64_t n = 0; n < N; ++n) {
        const int64_t e = sorted.expert(r);
        REQUIRE(near(dtype, out[r * N + n], bias[2 * (e * N + n)] + sum_of(K, [&](int64_t k) {
                                              return x(sorted.token(r), k) * b(e * K + k, n);
                                            })));
      }
    for (int64_t i = 0; i < 20; ++i) REQUIRE(out[sorted.T * N + i] == 99);
  });
}

TEST_CASE("rows reduce to tokens, in every type and layout") {
  for_cases([](Dtype dtype, const Shape& shape, Order order) {
    const Sorted sorted(shape);
    const int64_t T = sorted.T, H = shape.out, K = shape.in;
    const Table x(dtype, T, K, Order::kRows, 1, 0.5), b(dtype, kExperts * K, H, order, 2, 0.5);
    const Operands rows(dtype, sorted, x);
    const Elements bias = Elements::sines(dtype, kExperts * 2 * H, 3),
                   weights = Elements::sines(accumulate(dtype), T, 4);
    // Tokens of an expert stand in their own order.
    std::vector<int32_t> permutation;
    for (int64_t r = 0; r < T; ++r) permutation.push_back(static_cast<int32_t>(r));
    Elements out(dtype, T * H + 20, 99);
    ReduceParams p{};
    p.dtype = dtype;
    p.T = T;
    p.K = 1;
    p.E = kExperts;
    p.H = H;
    p.depth = K;
    p.row_width = rows.ld;
    p.token_range = 33;
    p.permutation = permutation.data();
    p.offsets = sorted.offsets.data();
    p.rows = rows.x.data();
    p.b = experts_of(b);
    p.bias = bias_of(bias, H);
    p.weights = weights.data();
    p.out = out.data();
    int64_t scratch = 0;
    moe_experts_reduce_layout(p, &scratch);
    run(moe_experts_reduce, p, ceil_div(T, p.token_range) * ceil_div(H, kHiddenBlock), scratch);
    for (int64_t t = 0; t < T; ++t)
      for (int64_t h = 0; h < H; ++h) {
        const int64_t e = sorted.expert(t);
        const double row = sum_of(K, [&](int64_t k) { return rows(t, k) * b(e * K + k, h); });
        REQUIRE(near(dtype, out[t * H + h], weights[t] * (row + bias[2 * (e * H + h)])));
      }
    for (int64_t i = 0; i < 20; ++i) REQUIRE(out[T * H + i] == 99);
  });
}

TEST_CASE("gradients of weights and biases, in every type and layout") {
  for_cases([](Dtype dtype, const Shape& shape, Order order) {
    const Sorted sorted(shape);
    const int64_t M = shape.in, N = shape.out;
    const Table a(dtype, sorted.T, M, order, 1, 0.5), b(dtype, sorted.T, N, order, 2, 0.5);
    const Elements weights = Elements::sines(accumulate(dtype), sorted.T, 4);
    const Operands operands(dtype, sorted, a);
    Elements grad(dtype, kExperts * M * N + 20, 99), grad_bias(dtype, kExperts * N + 20, 99);
    const GradBiasParams q{
        dtype, N, sorted.offsets.data(), sorted.rows_of(b), weights.data(), grad_bias.data()};
    run(moe_experts_grad_bias, q, kExperts * ceil_div(N, kBiasColumns), 0);
    for (const bool as_operands : {false, true}) {
      const GradWeightParams p{dtype,
                               M,
                               N,
                               sorted.offsets.data(),
                               as_operands ? operands.rows() : sorted.rows_of(a),
                               sorted.rows_of(b),
                               grad.data()};
      int64_t scratch = 0;
      moe_experts_grad_weight_layout(p, &scratch);
      run(moe_experts_grad_weight, p, kExperts * ceil_div(M, kGradRows) * ceil_div(N, kGradColumns),
          scratch);
      for (int64_t e = 0; e < kExperts; ++e)
        for (int64_t n = 0; n < N; ++n) {
          const int64_t first = sorted.offsets[e], rows = sorted.offsets[e + 1] - first;
          const auto sum = [&](const auto& factor) {
            return sum_of(rows, [&](int64_t r) {
              const int64_t t = sorted.token(first + r);
              return factor(t) * b(t, n);
            });
          };
          for (int64_t m = 0; m < M; ++m)
            REQUIRE(
                near(dtype, grad[(e * M + m) * N + n], sum([&](int64_t t) { return a(t, m); })));
          REQUIRE(near(dtype, grad_bias[e * N + n], sum([&](int64_t t) { return weights[t]; })));
        }
    }
    for (int64_t i = 0; i < 20; ++i) {
      REQUIRE(grad[kExperts * M * N + i] == 99);
      REQUIRE(grad_bias[kExperts * N + i] == 99);
    }
  });
}

namespace {

double activation(Activation kind, double g) {
  const double positive = std::fmax(g, 0);
  switch (kind) {
    case Activation::kSilu: return g / (1 + std::exp(-g));
    case Activation::kGelu: return g * 0.5 * std::erfc(-g * std::sqrt(0.5));
    case Activation::kGeluTanh:
      return 0.5 * g * (1 + std::tanh(std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g)));
    case Activation::kRelu: return positive;
    case Activation::kRelu2: return positive * positive;
    case Activation::kSwigluOai: return g / (1 + std::exp(-1.5 * g));  // no limit
  }
  return 0;
}

/// The hidden layer of one shape, both directions; I is the shape's `out`, H its `in`.
struct Hidden {
  Dtype dtype;
  Sorted sorted;
  int64_t H, I, width;
  Activation kind;
  bool gated, interleaved;
  Table x, grad, w_in, w_out;
  Operands x_rows, grad_rows;
  Elements b_in, b_out, weights;
  Elements hidden, dots;
  Operands activated, grad_hidden;
  HiddenParams p{};
  HiddenLayout layout{};

  Hidden(Dtype dtype, const Shape& shape, Order order, Activation kind, bool gated,
         bool interleaved)
      : dtype(dtype),
        sorted(shape),
        H(shape.in),
        I(shape.out),
        width(gated ? 2 * I : I),
        kind(kind),
        gated(gated),
        interleaved(interleaved),
        x(dtype, sorted.T, H, Order::kRows, 1, 0.5),
        grad(dtype, sorted.T, H, Order::kRows, 5, 0.5),
        w_in(dtype, kExperts * width, H, order, 2, 0.4),
        w_out(dtype, kExperts * H, I, order, 3, 0.4),
        x_rows(dtype, sorted, x),
        grad_rows(dtype, sorted, grad),
        b_in(Elements::sines(dtype, kExperts * 2 * width, 6)),
        b_out(Elements::sines(dtype, kExperts * 2 * H, 7)),
        weights(Elements::sines(accumulate(dtype), sorted.T, 4)),
        hidden(accumulate(dtype), sorted.T * width),
        dots(accumulate(dtype), sorted.T * (blocks() + 1)),
        activated(dtype, sorted.T, I),
        grad_hidden(dtype, sorted.T, width) {
    p.dtype = dtype;
    p.H = H;
    p.I = I;
    p.activation = {kind, 1.5, 0};
    p.gated = gated;
    p.interleaved = interleaved;
    p.segments = sorted.segments.data();
    p.permutation = sorted.permutation.data();
    p.x = x_rows.rows();
    p.grad = grad_rows.rows();
    p.w_in = experts_of(w_in);
    p.w_out = experts_of(w_out);
    p.b_in = bias_of(b_in, width);
    p.b_out = bias_of(b_out, H);
    p.weights = weights.data();
    p.hidden = hidden.data();
    p.activated = activated.x.data();
    p.row_width = activated.ld;
    p.grad_hidden = grad_hidden.x.data();
    p.grad_width = grad_hidden.ld;
    p.dots = dots.data();
    p.dot_parts = blocks() + 1;
    p.need_grad = true;
    moe_experts_hidden_layout(p, &layout);
  }
  int64_t blocks() const { return ceil_div(I, kHiddenBlock); }
  int64_t gate_at(int64_t i) const { return gated && interleaved ? 2 * i : i; }
  int64_t up_at(int64_t i) const { return interleaved ? 2 * i + 1 : I + i; }
  double pre(int64_t r, int64_t c) const {
    const int64_t n = sorted.expert(r) * width + c;
    return b_in[2 * n] + sum_of(H, [&](int64_t k) { return w_in(n, k) * x(sorted.token(r), k); });
  }
  double up_of(double u) const { return kind == Activation::kSwigluOai ? u + 1 : u; }
  double h(double g, double u) const { return activation(kind, g) * (gated ? up_of(u) : 1); }

  void forward() {
    run(moe_experts_hidden, p, sorted.tasks(I, kHiddenBlock), layout.hidden);
    for (int64_t r = 0; r < sorted.T; ++r)
      for (int64_t i = 0; i < I; ++i) {
        const double g = pre(r, gate_at(i)), u = gated ? pre(r, up_at(i)) : 0;
        REQUIRE(near(accumulate(dtype), hidden[r * width + gate_at(i)], g));
        if (gated) REQUIRE(near(accumulate(dtype), hidden[r * width + up_at(i)], u));
        REQUIRE(near(operand(dtype), activated(r, i), h(g, u)));
      }
  }
  void backward() {
    run(moe_experts_grad_hidden, p, sorted.tasks(I, kHiddenBlock), layout.grad_hidden);
    run(moe_experts_bias_dots, p, static_cast<int64_t>(sorted.segments.size()), 0);
    for (int64_t r = 0; r < sorted.T; ++r) {
      const int64_t e = sorted.expert(r), t = sorted.token(r), parts = p.dot_parts;
      double dot = 0;
      for (int64_t i = 0; i < I; ++i) dot += check_gradient(r, i);
      REQUIRE(near(Dtype::kFloat32,
                   sum_of(parts - 1, [&](int64_t b) { return dots[r * parts + b]; }), dot));
      REQUIRE(near(accumulate(dtype), dots[(r + 1) * parts - 1],
                   sum_of(H, [&](int64_t c) { return grad(t, c) * b_out[2 * (e * H + c)]; })));
    }
  }
  /// Of gate and up i of row r; returns its part of h·dh.
  double check_gradient(int64_t r, int64_t i) const {
    const int64_t e = sorted.expert(r), t = sorted.token(r);
    const double g = hidden[r * width + gate_at(i)], u = gated ? hidden[r * width + up_at(i)] : 0;
    const double dh = sum_of(H, [&](int64_t c) { return grad(t, c) * w_out(e * H + c, i); });
    const double w = weights[t];
    REQUIRE(near(operand(dtype), activated(r, i), w * h(g, u)));
    if (std::fabs(g) > 0.01)  // else a kink of ReLU may be near
      REQUIRE(near(operand(dtype), grad_hidden(r, gate_at(i)),
                   w * dh * slope([&](double d) { return h(g + d, u); }), kSlopeError));
    if (gated)
      REQUIRE(near(operand(dtype), grad_hidden(r, up_at(i)),
                   w * dh * slope([&](double d) { return h(g, u + d); }), kSlopeError));
    return dh * h(g, u);
  }
};

}  // namespace

TEST_CASE("the hidden layer of every activation, in every type and layout, and its gradients") {
  for (const Dtype dtype : kDtypes)
    for (const Shape& shape : kShapes)
      for (const auto& [name, kind] : kActivations)
        for (const int gates : {0, 1, 2}) {  // none, gates then ups, each gate beside its up
          const Order order = kOrders[(static_cast<int>(kind) + gates) % 3];
          INFO("dtype " << int(dtype) << ", " << shape.in << " to " << shape.out << ", order "
                        << int(order) << ", " << name << ", gates " << gates);
          Hidden hidden(dtype, shape, order, kind, gates > 0, gates == 2);
          hidden.forward();
          hidden.backward();
        }
}
