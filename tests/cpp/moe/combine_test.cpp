// Sorting rows by expert and back, both directions, against plain loops: every type, strides, assignments that no expert takes.
#include "catch.h"
#include "moe/table.h"
#include "scratch.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
CombineTaskFn moe_permute, moe_combine, moe_combine_grad_y, moe_combine_grad_weights;
}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite

using namespace fulgurite;
using namespace fulgurite::FULGURITE_VARIANT;

namespace {

constexpr double kUnwritten = 99;

struct Problem {
  Dtype dtype;
  int64_t T, K, H, rows = T * K;
  Table x, y, grad;
  Elements weights = Elements::sines(accumulate(dtype), rows, 5);
  std::vector<int32_t> permutation, inverse, owner;

  Problem(Dtype dtype, int64_t T, int64_t K, int64_t H, Order order)
      : dtype(dtype),
        T(T),
        K(K),
        H(H),
        x(dtype, T, H, order, 1),
        y(dtype, rows, H, order, 2),
        grad(dtype, T, H, order, 3),
        inverse(static_cast<size_t>(rows), -1) {
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t a = rows - 1 - row;
      const bool taken = row % 4 != 3;
      permutation.push_back(static_cast<int32_t>(a));
      owner.push_back(static_cast<int32_t>(taken ? a : -1));
      if (taken) inverse[static_cast<size_t>(a)] = static_cast<int32_t>(row);
    }
  }
  CombineParams params(bool weighted, Elements& out) const {
    CombineParams p{};
    p.dtype = dtype;
    p.T = T;
    p.K = K;
    p.H = H;
    p.permutation = permutation.data();
    p.inverse = inverse.data();
    p.owner = owner.data();
    p.x = x.matrix();
    p.y = y.matrix();
    p.grad = grad.matrix();
    p.weights = weighted ? weights.data() : nullptr;
    p.out = p.grad_y = p.grad_weights = out.data();
    return p;
  }
  /// What the kernel leaves of `count` rows of `width` numbers, taken in two tasks; nothing past them is written.
  Elements run(CombineTaskFn& kernel, bool weighted, Dtype type, int64_t count,
               int64_t width) const {
    Elements out(type, count * width + 20, kUnwritten);
    Scratch scratch(padded_row(H) * 8);
    const CombineParams p = params(weighted, out);
    kernel(p, 0, count / 3, scratch.data());
    kernel(p, count / 3, count, scratch.data());
    for (int64_t i = 0; i < 20; ++i) REQUIRE(out[count * width + i] == kUnwritten);
    return out;
  }
  double weight(bool weighted, int64_t a) const { return weighted ? weights[a] : 1; }

  void check_permute() const {
    const Elements out = run(moe_permute, false, dtype, rows, H);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t c = 0; c < H; ++c)
        REQUIRE(out[row * H + c] == (owner[row] < 0 ? 0 : x(owner[row] / K, c)));
  }
  void check_combine(bool weighted) const {
    const Elements out = run(moe_combine, weighted, dtype, T, H);
    for (int64_t t = 0; t < T; ++t)
      for (int64_t c = 0; c < H; ++c) {
        double sum = 0;
        for (int64_t a = t * K; a < (t + 1) * K; ++a)
          if (inverse[a] >= 0) sum += weight(weighted, a) * y(inverse[a], c);
        REQUIRE(near(dtype, out[t * H + c], sum));
      }
  }
  void check_grad_y(bool weighted) const {
    const Elements out = run(moe_combine_grad_y, weighted, dtype, rows, H);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t c = 0; c < H; ++c) {
        const int64_t a = owner[row];
        REQUIRE(near(dtype, out[row * H + c], a < 0 ? 0 : weight(weighted, a) * grad(a / K, c)));
      }
  }
  void check_grad_weights() const {
    const Elements out = run(moe_combine_grad_weights, true, accumulate(dtype), T, K);
    for (int64_t a = 0; a < rows; ++a) {
      double dot = 0;
      for (int64_t c = 0; c < H && inverse[a] >= 0; ++c) dot += grad(a / K, c) * y(inverse[a], c);
      REQUIRE(near(accumulate(dtype), out[a], dot));
    }
  }
};

}  // namespace

TEST_CASE("rows are sorted by expert and added up again") {
  for (const Dtype dtype : kDtypes)
    for (const int64_t T : {0, 1, 7})
      for (const int64_t K : {1, 3})
        for (const int64_t H : {0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33})
          for (const Order order : kOrders) {
            INFO("dtype " << int(dtype) << ", T " << T << ", K " << K << ", H " << H << ", order "
                          << int(order));
            const Problem problem(dtype, T, K, H, order);
            problem.check_permute();
            for (const bool weighted : {false, true}) {
              problem.check_combine(weighted);
              problem.check_grad_y(weighted);
            }
            problem.check_grad_weights();
          }
}
