// The AdamW kernel alone: its order of operations in scalar code, tails, walks over strides, split masters.
#include <cmath>
#include <cstring>
#include <vector>

#include "catch.h"
#include "optim/cpu/kernels/split.h"
#include "optim/values.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
AdamwTaskFn adamw_update;
}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite

using namespace fulgurite;

namespace {

void run(const AdamwTensor& tensor, const Walk& walk, const std::vector<int64_t>& layouts,
         int64_t first, int64_t last) {
  const AdamwScalars numbers = scalars();
  const AdamwProblem p{&walk, layouts.data(), &tensor, &numbers, 1, {}, false};
  FULGURITE_VARIANT::adamw_update(p, first, last);
}

/// The order that docs/ops/adamw_.md promises, one element at a time.
void step(float& p, float grad, float& m, float& v) {
  const AdamwScalars s = scalars();
  const float g = grad * static_cast<float>(s.grad_factor);
  p = p * static_cast<float>(s.decay);
  m = std::fma(static_cast<float>(s.exp_avg_weight), g - m, m);
  v = std::fma(static_cast<float>(s.exp_avg_sq_weight) * g, g, static_cast<float>(s.beta2) * v);
  const float denominator =
      std::sqrt(v) / static_cast<float>(s.correction) + static_cast<float>(s.eps);
  p = p - (static_cast<float>(s.step_size) * m) / denominator;
}

/// A parameter of float32 numbers in halves.
struct Halves {
  std::vector<uint16_t> high;
  std::vector<int16_t> low;

  Halves(std::vector<uint16_t> high, std::vector<int16_t> low)
      : high(std::move(high)), low(std::move(low)) {}
  explicit Halves(const std::vector<float>& x) {
    for (const float number : x) {
      const auto halves = FULGURITE_VARIANT::split<4>(FULGURITE_VARIANT::Vec<float, 4>{number});
      high.push_back(halves.high[0]);
      low.push_back(halves.low[0]);
    }
  }
  std::vector<float> joined() const {
    std::vector<float> x;
    for (size_t i = 0; i < high.size(); ++i)
      x.push_back(FULGURITE_VARIANT::join<4>(FULGURITE_VARIANT::Vec<uint16_t, 4>{high[i]},
                                             FULGURITE_VARIANT::Vec<int16_t, 4>{low[i]})[0]);
    return x;
  }
  /// Steps them with the gradients and moments of x.
  void step(Values& x) {
    const int64_t n = static_cast<int64_t>(high.size());
    AdamwTensor tensor = descriptor(x);
    tensor.data[kParam] = high.data();
    tensor.dtype[kParam] = Dtype::kBFloat16;
    tensor.data[kMaster] = low.data();
    tensor.bytes[kParam] = tensor.bytes[kMaster] = 2;
    tensor.split = true;
    run(tensor, {0, n, 0, 0}, {}, 0, n);
  }
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

TEST_CASE("every length has the bits of the scalar formula") {
  for (int64_t n : {1, 2, 3, 7, 15, 16, 17, 31, 33, 255, 256, 257, 1000}) {
    Values x(n), expected(n);
    for (size_t i = 0; i < expected.p.size(); ++i)
      step(expected.p[i], expected.g[i], expected.m[i], expected.v[i]);
    run(descriptor(x), {0, n, 0, 0}, {}, 0, n);
    CHECK(same_bits(x.p, expected.p));
    CHECK(same_bits(x.m, expected.m));
    CHECK(same_bits(x.v, expected.v));
  }
}

TEST_CASE("a task touches only its positions") {
  Values x(1000), before(1000), whole(1000);
  run(descriptor(whole), {0, 1000, 0, 0}, {}, 0, 1000);
  run(descriptor(x), {0, 1000, 0, 0}, {}, 100, 333);
  for (size_t i = 0; i < 1000; ++i) CHECK(x.p[i] == (i >= 100 && i < 333 ? whole.p : before.p)[i]);
}

TEST_CASE("strided rows reach the same elements") {
  constexpr int64_t kRows = 9, kColumns = 21;
  Values dense(kRows * kColumns), x(kRows * kColumns);
  run(descriptor(dense), {0, kRows * kColumns, 0, 0}, {}, 0, kRows * kColumns);
  const std::vector<int64_t> layouts = turn_gradient(x, kRows, kColumns);
  const AdamwTensor tensor = descriptor(x);
  run(tensor, {0, kRows * kColumns, 2, 0}, layouts, 0, 50);
  run(tensor, {0, kRows * kColumns, 2, 0}, layouts, 50, kRows * kColumns);
  CHECK(same_bits(x.p, dense.p));
  CHECK(same_bits(x.v, dense.v));
}

TEST_CASE("a split master takes the float32 step") {
  constexpr int64_t n = 77;
  Values wide(n), x(n);
  Halves halves(x.p);
  halves.step(x);
  run(descriptor(wide), {0, n, 0, 0}, {}, 0, n);
  CHECK(same_bits(halves.joined(), wide.p));
  CHECK(same_bits(x.m, wide.m));
}

TEST_CASE("a float32 parameter with a master of its own is the master") {
  constexpr int64_t n = 77;
  Values wide(n), x(n);
  std::vector<float> master = x.p;
  x.p.assign(n, 5.0f);
  AdamwTensor tensor = descriptor(x);
  tensor.data[kMaster] = master.data();
  run(tensor, {0, n, 0, 0}, {}, 0, n);
  run(descriptor(wide), {0, n, 0, 0}, {}, 0, n);
  CHECK(same_bits(master, wide.p));
  CHECK(same_bits(x.p, wide.p));
}

TEST_CASE("halves that make no number are those of a parameter that was written") {
  const int64_t n = 37;
  for (const uint16_t written : {0x0000, 0x8000, 0x3F80, 0x7F80, 0x7FC0}) {
    std::vector<int16_t> low(n);
    for (int64_t i = 0; i < n; ++i) low[i] = static_cast<int16_t>(1777 * (i - 18));
    Halves halves(std::vector<uint16_t>(n, written), low);
    Values x(n), wide(n);
    wide.p = halves.joined();
    for (float& p : wide.p)
      if (p != p) {
        const uint32_t bits = uint32_t{written} << 16;
        std::memcpy(&p, &bits, sizeof(p));
      }
    halves.step(x);
    run(descriptor(wide), {0, n, 0, 0}, {}, 0, n);
    const std::vector<float> stepped = halves.joined();
    for (int64_t i = 0; i < n; ++i) CHECK((stepped[i] == wide.p[i] || wide.p[i] != wide.p[i]));
  }
}

TEST_CASE("powers are those of squaring, every product rounded") {
  CHECK(power(0.9, 0) == 1);
  CHECK(power(0.9, 1) == 0.9);
  const double square = 0.9 * 0.9, fourth = square * square;
  CHECK(power(0.9, 5) == 0.9 * fourth);
  CHECK(power(0.5, 1000) == std::ldexp(1.0, -1000));
  CHECK(power(0.999, int64_t{1} << 24) == 0);
  CHECK(power(0, 3) == 0);
}

TEST_CASE("the numbers of a step") {
  const AdamwHyper hyper{0.125, 0.75, 0.5, 1e-3, 0.5, 0.25};
  const AdamwScalars s = step_scalars(hyper, 2, 0.5, true, true);
  CHECK(s.grad_factor == -0.5);
  CHECK(s.decay == 1 - 0.0625);
  CHECK(s.weight_decay == 0);
  CHECK(s.from_exp_avg);
  CHECK(s.exp_avg_weight == 0.25);
  CHECK(s.exp_avg_sq_weight == 0.5);
  CHECK(s.beta2 == 0.5);
  CHECK(s.step_size == 0.125 / (1 - 0.5625));
  CHECK(s.correction == std::sqrt(0.75));
  CHECK(s.eps == 1e-3);
  CHECK(s.ema_weight == 0.75);
  const AdamwScalars coupled =
      step_scalars({0.125, 0.25, 0.5, 1e-3, 0.5, 0.25}, 1, 2, false, false);
  CHECK(coupled.grad_factor == 2);
  CHECK(coupled.decay == 1);
  CHECK(coupled.weight_decay == 0.5);
  CHECK_FALSE(coupled.from_exp_avg);
  CHECK(coupled.exp_avg_weight == -0.25);
}

TEST_CASE("walks give every element once") {
  // Three tensors: 5 elements, none, and 200 in rows of 8 whose stride is 10.
  const std::vector<Walk> walks{{0, 5, 0, 0}, {64, 0, 0, 0}, {64, 200, 2, 0}};
  const std::vector<int64_t> layouts{25, 8, 10, 1};
  std::vector<int> seen5(5), seen200(250);
  for (int64_t first = 0; first < 264; first += 50)
    FULGURITE_VARIANT::walk_tensors(
        walks.data(), 3, first, first + 50, [&](int64_t t, int64_t begin, int64_t end) {
          FULGURITE_VARIANT::walk_rows<1>(
              walks[static_cast<size_t>(t)], layouts.data(), begin, end,
              [&](const int64_t* offset, const int64_t* stride, int64_t n) {
                for (int64_t i = 0; i < n; ++i)
                  ++(t == 0 ? seen5 : seen200)[static_cast<size_t>(*offset + i * *stride)];
              });
        });
  for (int count : seen5) CHECK(count == 1);
  for (size_t i = 0; i < 250; ++i) CHECK(seen200[i] == (i % 10 < 8));
}
