// Normalised rows against float64: every type of x and weight, widths below and above vectors, gaps.
#include "catch.h"
#include "norm_problem.h"
#include "scratch.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
RmsNormTaskFn rms_norm;
RmsNormLayoutFn rms_norm_layout;
}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite

using namespace fulgurite;

namespace {

void check(const NormProblem& q, int64_t rows_per_task) {
  INFO("dtype " << int(q.dtype) << ", weight " << int(q.weight_dtype) << ", rows " << q.rows()
                << ", H " << q.H() << ", stride " << q.x.stride);
  Elements out(q.dtype, q.rows() * q.H() + 1, kUnwritten),
      rstd(accumulate(q.dtype), q.rows() + 1, kUnwritten);
  RmsNormParams p{};
  q.describe(p);
  p.rows_per_task = rows_per_task;
  p.out = out.data();
  p.rstd = rstd.data();
  int64_t bytes = 0;
  FULGURITE_VARIANT::rms_norm_layout(p, &bytes);
  run(FULGURITE_VARIANT::rms_norm, p, ceil_div(p.rows, rows_per_task), bytes);
  for (int64_t row = 0; row < q.rows(); ++row) {
    REQUIRE(near(accumulate(q.dtype), rstd[row], q.rstd(row)));
    for (int64_t i = 0; i < q.H(); ++i)
      REQUIRE(near(q.dtype, out[row * q.H() + i], q.x(row, i) * q.rstd(row) * q.factor(i)));
  }
  REQUIRE(out[q.rows() * q.H()] == kUnwritten);
  REQUIRE(rstd[q.rows()] == kUnwritten);
}

}  // namespace

TEST_CASE("rows of every width, type and layout") {
  for (const Dtype dtype : kDtypes)
    for (const Dtype weight : weight_dtypes(dtype))
      for (const int64_t stride : {1, 2})
        for (const int64_t H : {1, 3, 16, 63, 64, 129}) {
          check({dtype, weight, 3, H, stride}, 4);
          check({dtype, weight, 2, H, stride, true, 1}, 1);
        }
}

TEST_CASE("rows without a weight") {
  for (const Dtype dtype : kDtypes)
    for (const int64_t H : {5, 64, 100}) check({dtype, dtype, 3, H, 1, false}, 2);
}

TEST_CASE("tasks of some thousand elements, of a row at least") {
  for (const int64_t H : {1, 64, 16384, 1000000}) {
    const int64_t rows = rms_norm_rows_per_task(H);
    REQUIRE(rows >= 1);
    REQUIRE((rows == 1 || rows * H <= 16384));
  }
}
