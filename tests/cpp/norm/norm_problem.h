// Rows in every layout that the kernels take, normalised in float64.
#pragma once

#include <array>

#include "elements.h"
#include "norm/cpu/kernels/params.h"

namespace fulgurite {

inline constexpr double kUnwritten = 99;

/// (outer, inner, H) with gaps: rows whose starts are not evenly spaced, elements `stride` apart.
struct TestRows {
  int64_t outer, inner, H, stride, inner_step, outer_step;
  Elements x;

  TestRows(Dtype dtype, int64_t outer, int64_t inner, int64_t H, int64_t stride, int seed)
      : outer(outer),
        inner(inner),
        H(H),
        stride(stride),
        inner_step(stride == 1 ? H : stride * H + 1),
        outer_step(inner * inner_step + 3),
        x(Elements::sines(dtype, outer * outer_step, seed, 2)) {}
  int64_t start(int64_t row) const { return row / inner * outer_step + row % inner * inner_step; }
  double operator()(int64_t row, int64_t i) const { return x[start(row) + i * stride]; }
};

struct NormProblem {
  Dtype dtype, weight_dtype;
  bool weighted;
  double eps, shift;
  TestRows x, grad_out;
  Elements weight;  // every second element
  std::array<int64_t, 6> layout;

  NormProblem(Dtype dtype, Dtype weight_dtype, int64_t rows, int64_t H, int64_t stride,
              bool weighted = true, double shift = 0)
      : dtype(dtype),
        weight_dtype(weight_dtype),
        weighted(weighted),
        eps(1e-3),
        shift(shift),
        x(dtype, 2, rows, H, stride, 1),
        grad_out(dtype, 2, rows, H, stride == 1 ? 1 : stride + 1, 2),
        weight(Elements::sines(weight_dtype, 2 * H, 3)),
        layout{2, rows, x.outer_step, grad_out.outer_step, x.inner_step, grad_out.inner_step} {}
  int64_t rows() const { return x.outer * x.inner; }
  int64_t H() const { return x.H; }
  void describe(RmsNormProblem& p) const {
    p.dtype = dtype;
    p.weight_dtype = weight_dtype;
    p.H = H();
    p.rows = rows();
    p.eps = eps;
    p.weight_shift = shift;
    p.walk = {0, rows(), 2, 0};
    p.layouts = layout.data();
    p.x = x.x.data();
    p.x_stride = x.stride;
    if (weighted) p.weight = weight.data();
    p.weight_stride = 2;
  }
  double factor(int64_t i) const { return weighted ? weight[2 * i] + shift : 1; }
  double rstd(int64_t row) const {
    double squares = 0;
    for (int64_t i = 0; i < H(); ++i) squares += x(row, i) * x(row, i);
    return 1 / std::sqrt(squares / static_cast<double>(H()) + eps);
  }
};

/// The types that a weight beside x of this one may have.
inline std::vector<Dtype> weight_dtypes(Dtype dtype) {
  if (dtype == Dtype::kFloat64) return {dtype};
  return {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16};
}

}  // namespace fulgurite
