// Merging partial results, forward and backward, against plain loops; the weights sum to 1 wherever the lses lie.
#include <vector>

#include "attention/cpu/kernels/merge.h"
#include "catch.h"
#include "stored.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
MergeFn attention_merge, attention_merge_backward;
}  // namespace FULGURITE_VARIANT

namespace {

constexpr int64_t kPartials = 3, kRows = 6, kWidth = 11;

struct Merge {
  std::vector<Rows> outs, grad_outs;
  std::vector<Sums> lses, grad_lses;
  Rows out = Rows(kRows * kWidth), grad_out = numbers<Rows>(kRows * kWidth, 9);
  Sums lse = Sums(kRows), grad_lse = numbers<Sums>(kRows, 8);

  explicit Merge(double level) {
    for (int r = 0; r < kPartials; ++r) {
      outs.push_back(numbers<Rows>(kRows * kWidth, r + 1));
      lses.push_back(numbers<Sums>(kRows, r + 4));
      for (auto& x : lses.back()) x = level + double(x);
      grad_outs.emplace_back(kRows * kWidth);
      grad_lses.emplace_back(kRows);
    }
    // The first partial kept nothing of row 1, and none kept anything of row 2.
    lses[0][1] = lses[0][2] = lses[1][2] = lses[2][2] = -INFINITY;
    for (int64_t d = 0; d < kWidth; ++d) outs[0][kWidth + d] = NAN;  // so it is not read
  }

  void run() {
    std::vector<const void*> out_data, lse_data;
    std::vector<void*> grad_out_data, grad_lse_data;
    for (int r = 0; r < kPartials; ++r) {
      out_data.push_back(outs[r].data());
      lse_data.push_back(lses[r].data());
      grad_out_data.push_back(grad_outs[r].data());
      grad_lse_data.push_back(grad_lses[r].data());
    }
    MergeParams p{};
    p.dtype = kDtype;
    p.R = kPartials;
    p.rows = kRows;
    p.D = kWidth;
    p.outs = out_data.data();
    p.lses = lse_data.data();
    p.out = out.data();
    p.lse = lse.data();
    p.grad_out = grad_out.data();
    p.grad_lse = grad_lse.data();
    p.grad_outs = grad_out_data.data();
    p.grad_lses = grad_lse_data.data();
    for (const int64_t first : {0, 4}) {
      FULGURITE_VARIANT::attention_merge(p, first, first == 0 ? 4 : kRows);
      FULGURITE_VARIANT::attention_merge_backward(p, first, first == 0 ? 4 : kRows);
    }
  }

  /// The softmax of row i's lses; zeros if no partial kept anything.
  Numbers weights(int64_t i) const {
    double max = -INFINITY, sum = 0;
    for (const Sums& part : lses) max = std::fmax(max, part[i]);
    Numbers w(kPartials);
    if (max == -INFINITY) return w;
    for (int r = 0; r < kPartials; ++r) sum += w[r] = std::exp(lses[r][i] - max);
    for (double& x : w) x /= sum;
    return w;
  }
  double dot(int r, int64_t i) const {
    double total = 0;
    for (int64_t d = 0; d < kWidth; ++d)
      total += grad_out[i * kWidth + d] * outs[r][i * kWidth + d];
    return total;
  }
};

}  // namespace

TEST_CASE("partial results become one, and their gradients") {
  Merge merge(GENERATE(0.0, -1e4, 1e6, -1e9, -3e38));
  merge.run();
  for (int64_t i = 0; i < kRows; ++i) {
    const Numbers w = merge.weights(i);
    double mean = 0;
    for (int r = 0; r < kPartials; ++r)
      if (w[r] > 0) mean += w[r] * merge.dot(r, i);
    for (int64_t d = 0; d < kWidth; ++d) {
      double sum = 0;
      for (int r = 0; r < kPartials; ++r)
        if (w[r] > 0) sum += w[r] * merge.outs[r][i * kWidth + d];
      REQUIRE(near(merge.out[i * kWidth + d], sum));
      for (int r = 0; r < kPartials; ++r)
        REQUIRE(near(merge.grad_outs[r][i * kWidth + d], w[r] * merge.grad_out[i * kWidth + d]));
    }
    for (int r = 0; r < kPartials; ++r)
      REQUIRE(near(merge.grad_lses[r][i],
                   w[r] > 0 ? w[r] * (merge.dot(r, i) - mean + merge.grad_lse[i]) : 0));
  }
  REQUIRE(double(merge.lse[2]) == -INFINITY);
}

TEST_CASE("a partial of +inf outweighs the others, and NaN among the lses shows in its own row") {
  const bool infinite = GENERATE(true, false);
  Merge merge(0);
  merge.lses[1][4] = infinite ? INFINITY : NAN;
  merge.run();
  REQUIRE(std::isnan(merge.lse[4]) == !infinite);
  REQUIRE(!std::isfinite(merge.lse[4]));
  REQUIRE(std::isnan(merge.out[4 * kWidth]) == !infinite);
  if (infinite) REQUIRE(merge.out[4 * kWidth] == merge.outs[1][4 * kWidth]);
  REQUIRE(std::isfinite(merge.out[5 * kWidth]));
  REQUIRE(std::isfinite(merge.lse[5]));
}

}  // namespace fulgurite
