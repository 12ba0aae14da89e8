// Gradients of normalised rows against float64: each alone and both, blocks of rows.
#include "catch.h"
#include "norm_problem.h"
#include "scratch.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
RmsNormBackwardTaskFn rms_norm_backward;
RmsNormBackwardLayoutFn rms_norm_backward_layout;
RmsNormSumsFn rms_norm_sums;
}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite

using namespace fulgurite;
using namespace fulgurite::FULGURITE_VARIANT;

namespace {

void check_x(const NormProblem& q, const Elements& grad_x) {
  for (int64_t row = 0; row < q.rows(); ++row) {
    double along = 0;
    for (int64_t i = 0; i < q.H(); ++i) along += q.grad_out(row, i) * q.factor(i) * q.x(row, i);
    const double r = q.rstd(row), slope = r * r * along / static_cast<double>(q.H());
    for (int64_t i = 0; i < q.H(); ++i)
      REQUIRE(near(q.dtype, grad_x[row * q.H() + i],
                   r * (q.grad_out(row, i) * q.factor(i) - q.x(row, i) * slope)));
  }
}

void check_weight(const NormProblem& q, const Elements& grad_weight) {
  for (int64_t i = 0; i < q.H(); ++i) {
    double sum = 0, size = 0;
    for (int64_t row = 0; row < q.rows(); ++row) {
      const double term = q.grad_out(row, i) * q.x(row, i) * q.rstd(row);
      sum += term;
      size += std::fabs(term);
    }
    REQUIRE(near(q.weight_dtype, grad_weight[i], sum, 1e-6 * size));
  }
}

void check(const NormProblem& q, int64_t rows_per_block, bool of_x, bool of_weight) {
  INFO("dtype " << int(q.dtype) << ", weight " << int(q.weight_dtype) << ", rows " << q.rows()
                << ", H " << q.H() << ", stride " << q.x.stride);
  const int64_t blocks = ceil_div(q.rows(), rows_per_block);
  Elements rstd(accumulate(q.dtype), q.rows()), grad_x(q.dtype, q.rows() * q.H() + 1, kUnwritten),
      grad_weight(q.weight_dtype, q.H() + 1, kUnwritten),
      sums(accumulate(q.dtype), blocks * rms_norm_padded(q.H()) + 1, kUnwritten);
  for (int64_t row = 0; row < q.rows(); ++row) rstd.set(row, q.rstd(row));
  RmsNormBackwardParams p{};
  q.describe(p);
  p.rows_per_block = rows_per_block;
  p.grad_out = q.grad_out.x.data();
  p.grad_out_stride = q.grad_out.stride;
  p.rstd = rstd.data();
  if (of_x) p.grad_x = grad_x.data();
  if (of_weight) p.sums = sums.data();
  p.grad_weight = grad_weight.data();
  int64_t bytes = 0;
  rms_norm_backward_layout(p, &bytes);
  fulgurite::run(rms_norm_backward, p, blocks, bytes);
  if (of_weight) {
    const int64_t half = q.H() / 32 * 16;
    rms_norm_sums(p, 0, half);
    rms_norm_sums(p, half, q.H());
    check_weight(q, grad_weight);
  }
  if (of_x) check_x(q, grad_x);
  REQUIRE(grad_x[q.rows() * q.H()] == kUnwritten);
  REQUIRE(grad_weight[q.H()] == kUnwritten);
  REQUIRE(sums[blocks * rms_norm_padded(q.H())] == kUnwritten);
}

}  // namespace

TEST_CASE("gradients of every width, type and layout") {
  for (const Dtype dtype : kDtypes)
    for (const Dtype weight : weight_dtypes(dtype))
      for (const int64_t stride : {1, 2})
        for (const int64_t H : {1, 3, 16, 63, 64, 129}) {
          check({dtype, weight, 3, H, stride}, 4, true, true);
          check({dtype, weight, 5, H, stride, true, 1}, 3, true, true);
        }
}

TEST_CASE("each gradient alone") {
  for (const Dtype dtype : kDtypes) {
    check({dtype, dtype, 4, 70, 1}, 3, true, false);
    check({dtype, dtype, 4, 70, 1}, 3, false, true);
    check({dtype, dtype, 4, 70, 1, false}, 3, true, false);
  }
}

TEST_CASE("there are only so many blocks, whatever the rows") {
  for (const int64_t H : {1, 64, 5000, 1000000})
    for (const int64_t rows : {1, 100, 100000})
      REQUIRE(ceil_div(rows, rms_norm_rows_per_block(H, rows)) <= kNormBlocks);
}
