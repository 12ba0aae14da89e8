#include "norm/check.h"

namespace fulgurite {
namespace {

/// Weights may be wider or narrower than x, but for float64, which is computed with itself alone.
void check_weight_type(const char* op, const Tensor& weight, const Tensor& x) {
  const at::ScalarType dtype = weight.scalar_type();
  const bool wide = x.scalar_type() == at::kDouble;
  FULGURITE_CHECK_TYPE(is_served_float(dtype) && (dtype == at::kDouble) == wide,
                       "expected weight of dtype ",
                       wide ? "float64" : "float32, bfloat16 or float16", " beside x of ",
                       x.scalar_type(), ", got ", dtype);
}

void check_types(const char* op, const RmsNormArgs& a) {
  check_float(op, "x", a.x);
  if (a.weight) check_weight_type(op, *a.weight, a.x);
}

void check_shapes(const char* op, const RmsNormArgs& a) {
  FULGURITE_CHECK(a.x.dim() >= 1, "expected x of shape [..., H], got ", a.x.sym_sizes());
  if (!a.weight) return;
  check_sizes(op, "weight", *a.weight, c10::SymDimVector{a.x.sym_size(-1)});
  check_place(op, "weight", *a.weight, a.x);
}

void check_values(const char* op, const RmsNormArgs& a) {
  check_not_negative(op, "eps", a.eps);
  check_finite(op, "weight_shift", a.weight_shift);
  FULGURITE_CHECK_VALUE(a.weight || a.weight_shift == 0,
                        "expected weight_shift 0 without a weight, got ", a.weight_shift);
}

}  // namespace

void check_rms_norm(const RmsNormArgs& a) {
  constexpr const char* op = RmsNormArgs::kName;
  check_types(op, a);
  check_shapes(op, a);
  check_values(op, a);
}

void check_rms_norm_backward(const RmsNormBackwardArgs& a) {
  constexpr const char* op = RmsNormBackwardArgs::kName;
  const RmsNormArgs& f = a.forward;
  check_types(op, f);
  check_same_dtype(op, "grad_out", a.grad_out, "x", f.x);
  const at::ScalarType wide = accumulate_type(f.x.scalar_type());
  FULGURITE_CHECK_TYPE(a.rstd.scalar_type() == wide, "expected rstd of dtype ", wide, ", got ",
                       a.rstd.scalar_type());
  check_shapes(op, f);
  check_sizes(op, "grad_out", a.grad_out, f.x.sym_sizes());
  check_place(op, "grad_out", a.grad_out, f.x);
  check_sizes(op, "rstd", a.rstd, rstd_sizes(f.x));
  check_place(op, "rstd", a.rstd, f.x);
  check_values(op, f);
  FULGURITE_CHECK_VALUE(f.weight || !a.output_mask[kNormWeight],
                        "expected weight, whose gradient is asked for, got none");
}

}  // namespace fulgurite
