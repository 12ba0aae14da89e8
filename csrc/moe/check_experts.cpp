// Checks of the experts and of the grouped product.
#include "common/check_choice.h"
#include "moe/check.h"
#include "moe/check_parts.h"
#include "moe/rules/choices.h"

namespace fulgurite {
namespace {

const RegisteredChoice experts_choices[] = {{"moe_experts.activation", kActivations}};

void check_experts_types(const char* op, const ExpertsArgs& a) {
  check_float(op, "x", a.x);
  check_ids_dtype(op, "ids", a.ids);
  check_weights_dtype(op, a.weights, "x", a.x);
  check_same_dtype(op, "w_in", a.w_in, "x", a.x);
  check_same_dtype(op, "w_out", a.w_out, "x", a.x);
  if (a.b_in) check_same_dtype(op, "b_in", *a.b_in, "x", a.x);
  if (a.b_out) check_same_dtype(op, "b_out", *a.b_out, "x", a.x);
}

/// w_in (E, 2I, H) and w_out (E, H, I); transposed: (E, H, 2I) and (E, I, H); not gated: I in place
/// of 2I.
ExpertsShape check_experts_shapes(const char* op, const ExpertsArgs& a) {
  check_dim(op, "x", a.x, 2, "[T, H]");
  check_dim(op, "ids", a.ids, 2, "[T, K]");
  check_dim(op, "w_in", a.w_in, 3,
            a.gated ? (a.transposed ? "[E, H, 2*I]" : "[E, 2*I, H]")
                    : (a.transposed ? "[E, H, I]" : "[E, I, H]"));
  check_dim(op, "w_out", a.w_out, 3, a.transposed ? "[E, I, H]" : "[E, H, I]");
  check_place(op, "x", a.x, a.x);
  const c10::SymInt I = a.w_out.sym_size(a.transposed ? 1 : 2);
  const ExpertsShape s{
      a.x.sym_size(0),    a.ids.sym_size(1), a.w_in.sym_size(0), a.x.sym_size(1), I,
      a.gated ? I * 2 : I};
  check_shape(op, "ids", a.ids, c10::SymDimVector{s.T, s.K}, a.x);
  check_shape(op, "weights", a.weights, c10::SymDimVector{s.T, s.K}, a.x);
  check_shape(
      op, "w_in", a.w_in,
      a.transposed ? c10::SymDimVector{s.E, s.H, s.width} : c10::SymDimVector{s.E, s.width, s.H},
      a.x);
  check_shape(op, "w_out", a.w_out,
              a.transposed ? c10::SymDimVector{s.E, s.I, s.H} : c10::SymDimVector{s.E, s.H, s.I},
              a.x);
  if (a.b_in) check_shape(op, "b_in", *a.b_in, c10::SymDimVector{s.E, s.width}, a.x);
  if (a.b_out) check_shape(op, "b_out", *a.b_out, c10::SymDimVector{s.E, s.H}, a.x);
  check_assignments(op, s.T, s.K);
  return s;
}

void check_experts_values(const char* op, const ExpertsArgs& a) {
  const Activation activation = check_choice(op, "activation", kActivations, a.activation);
  check_finite(op, "alpha", a.alpha);
  FULGURITE_CHECK_VALUE(a.limit >= 0, "expected limit >= 0, got ", a.limit);
  const bool oai = activation == Activation::kSwigluOai;
  FULGURITE_CHECK_VALUE(oai || (a.limit == 0 && a.alpha == 1),
                        "expected alpha 1 and limit 0 with activation '", a.activation, "', got ",
                        a.alpha, " and ", a.limit);
  FULGURITE_CHECK_VALUE(a.gated || !oai, "expected gated with activation 'swiglu_oai'");
  FULGURITE_CHECK_VALUE(a.gated || !a.interleaved, "expected gated with interleaved");
}

ExpertsShape check_experts_as(const char* op, const ExpertsArgs& a) {
  check_experts_types(op, a);
  const ExpertsShape s = check_experts_shapes(op, a);
  check_experts_values(op, a);
  return s;
}

}  // namespace

/// What is called while gradients are recorded, _moe_experts_forward, is named as users know it.
ExpertsShape check_experts(const ExpertsArgs& a) { return check_experts_as("moe_experts", a); }

ExpertsShape check_experts_backward(const ExpertsBackwardArgs& a) {
  constexpr const char* op = "_moe_experts_backward";
  const ExpertsArgs& f = a.forward;
  check_float(op, "x", f.x);
  check_same_dtype(op, "grad", a.grad, "x", f.x);
  if (a.hidden)
    FULGURITE_CHECK_TYPE(a.hidden->scalar_type() == accumulate_type(f.x.scalar_type()),
                         "expected hidden of dtype ", accumulate_type(f.x.scalar_type()), ", got ",
                         a.hidden->scalar_type());
  const ExpertsShape s = check_experts_as(op, f);
  check_shape(op, "grad", a.grad, f.x.sym_sizes(), f.x);
  if (a.hidden) check_shape(op, "hidden", *a.hidden, c10::SymDimVector{s.T * s.K, s.width}, f.x);
  return s;
}

// ---- grouped products

namespace {

void check_offsets_dtype(const char* op, const Tensor& offsets) {
  FULGURITE_CHECK_TYPE(offsets.scalar_type() == at::kLong, "expected offsets of dtype int64, got ",
                       offsets.scalar_type());
}

GroupedMmShape check_grouped_mm_shapes(const char* op, const Tensor& x, const Tensor& weight,
                                       const Tensor& offsets, bool transposed) {
  check_dim(op, "x", x, 2, "[rows, K]");
  check_dim(op, "weight", weight, 3, transposed ? "[E, K, N]" : "[E, N, K]");
  check_place(op, "x", x, x);
  const GroupedMmShape s{x.sym_size(0), weight.sym_size(0), x.sym_size(1),
                         weight.sym_size(transposed ? 2 : 1)};
  check_shape(
      op, "weight", weight,
      transposed ? c10::SymDimVector{s.E, s.depth, s.N} : c10::SymDimVector{s.E, s.N, s.depth}, x);
  check_shape(op, "offsets", offsets, c10::SymDimVector{s.E + 1}, x);
  return s;
}

}  // namespace

GroupedMmShape check_grouped_mm(const GroupedMmArgs& a) {
  constexpr const char* op = "moe_grouped_mm";
  check_float(op, "x", a.x);
  check_same_dtype(op, "weight", a.weight, "x", a.x);
  check_offsets_dtype(op, a.offsets);
  if (a.bias) check_same_dtype(op, "bias", *a.bias, "x", a.x);
  const GroupedMmShape s = check_grouped_mm_shapes(op, a.x, a.weight, a.offsets, a.transposed);
  if (a.bias) check_shape(op, "bias", *a.bias, c10::SymDimVector{s.E, s.N}, a.x);
  return s;
}

GroupedMmShape check_grouped_mm_backward(const GroupedMmBackwardArgs& a) {
  constexpr const char* op = "_moe_grouped_mm_backward";
  check_float(op, "x", a.x);
  check_same_dtype(op, "grad", a.grad, "x", a.x);
  check_same_dtype(op, "weight", a.weight, "x", a.x);
  check_offsets_dtype(op, a.offsets);
  const GroupedMmShape s = check_grouped_mm_shapes(op, a.x, a.weight, a.offsets, a.transposed);
  check_shape(op, "grad", a.grad, c10::SymDimVector{s.rows, s.N}, a.x);
  return s;
}

}  // namespace fulgurite
