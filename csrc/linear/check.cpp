#include "linear/check.h"

#include "common/check_choice.h"
#include "linear/check_inputs.h"
#include "linear/rules/choices.h"

namespace fulgurite {
namespace {

const RegisteredChoice conv_activation{"causal_conv1d.activation", kConvActivations};

void check_types(const char* op, const CausalConv1dArgs& a) {
  check_float(op, "x", a.x);
  check_own_or_float32(op, "weight", a.weight, "x", a.x);
  if (a.bias) check_own_or_float32(op, "bias", *a.bias, "x", a.x);
  if (a.initial_state) check_same_dtype(op, "initial_state", *a.initial_state, "x", a.x);
  if (a.cu_seqlens) check_offsets_type(op, "cu_seqlens", *a.cu_seqlens);
}

CausalConv1dShape check_shapes(const char* op, const CausalConv1dArgs& a) {
  check_dim(op, "x", a.x, 3, "[B, C, L]");
  check_dim(op, "weight", a.weight, 2, "[C, W]");
  CausalConv1dShape s{0, a.x.sym_size(1), a.x.sym_size(2), a.weight.sym_size(1)};
  FULGURITE_CHECK(same_size(a.weight.sym_size(0), s.C), "expected weight of shape [", s.C,
                  ", W], got ", a.weight.sym_sizes());
  FULGURITE_CHECK(s.W >= 1, "expected weight of shape [C, W] with W >= 1, got ",
                  a.weight.sym_sizes());
  check_place(op, "weight", a.weight, a.x);
  s.sequences = check_sequences(op, "x", a.x, a.cu_seqlens);
  if (a.bias) check_placed(op, "bias", *a.bias, c10::SymDimVector{s.C}, a.x);
  if (a.initial_state)
    check_placed(op, "initial_state", *a.initial_state,
                 c10::SymDimVector{s.sequences, s.C, s.W - 1}, a.x);
  return s;
}

void check_scan_types(const char* op, const SelectiveScanArgs& a) {
  check_float(op, "u", a.u);
  check_own_or_float32(op, "delta", a.delta, "u", a.u);
  check_own_or_float32(op, "A", a.A, "u", a.u);
  check_own_or_float32(op, "B", a.B, "u", a.u);
  check_own_or_float32(op, "C", a.C, "u", a.u);
  if (a.D) check_own_or_float32(op, "D", *a.D, "u", a.u);
  if (a.z) check_same_dtype(op, "z", *a.z, "u", a.u);
  if (a.delta_bias) check_own_or_float32(op, "delta_bias", *a.delta_bias, "u", a.u);
  if (a.initial_state) check_wide(op, "initial_state", *a.initial_state, a.u);
  if (a.cu_seqlens) check_offsets_type(op, "cu_seqlens", *a.cu_seqlens);
}

SelectiveScanShape check_scan_shapes(const char* op, const SelectiveScanArgs& a) {
  check_dim(op, "u", a.u, 3, "[B, D, L]");
  check_dim(op, "A", a.A, 2, "[D, N]");
  SelectiveScanShape s{0, a.u.sym_size(1), a.u.sym_size(2), a.A.sym_size(1), 1};
  check_placed(op, "delta", a.delta, a.u.sym_sizes(), a.u);
  check_placed(op, "A", a.A, c10::SymDimVector{s.D, s.N}, a.u);
  FULGURITE_CHECK(a.B.dim() == 3 || a.B.dim() == 4,
                  "expected B of shape [B, N, L] or [B, G, N, L], got ", a.B.sym_sizes());
  c10::SymDimVector columns{a.u.sym_size(0), s.N, s.L};
  if (a.B.dim() == 4) {
    s.G = a.B.sym_size(1);
    columns.insert(columns.begin() + 1, s.G);
  }
  check_placed(op, "B", a.B, columns, a.u);
  check_placed(op, "C", a.C, columns, a.u);
  FULGURITE_CHECK(s.G >= 1 && s.D % s.G == 0, "expected the groups of B to divide D = ", s.D,
                  ", got ", s.G);
  s.sequences = check_sequences(op, "u", a.u, a.cu_seqlens);
  if (a.D) check_placed(op, "D", *a.D, c10::SymDimVector{s.D}, a.u);
  if (a.z) check_placed(op, "z", *a.z, a.u.sym_sizes(), a.u);
  if (a.delta_bias) check_placed(op, "delta_bias", *a.delta_bias, c10::SymDimVector{s.D}, a.u);
  if (a.initial_state)
    check_placed(op, "initial_state", *a.initial_state, c10::SymDimVector{s.sequences, s.D, s.N},
                 a.u);
  return s;
}

}  // namespace

CausalConv1dShape check_causal_conv1d(const CausalConv1dArgs& a) {
  constexpr const char* op = CausalConv1dArgs::kName;
  check_types(op, a);
  const CausalConv1dShape s = check_shapes(op, a);
  check_choice(op, "activation", kConvActivations, a.activation);
  return s;
}

CausalConv1dShape check_causal_conv1d_backward(const CausalConv1dBackwardArgs& a) {
  constexpr const char* op = CausalConv1dBackwardArgs::kName;
  const CausalConv1dArgs& f = a.forward;
  check_types(op, f);
  if (a.grad_out) check_same_dtype(op, "grad_out", *a.grad_out, "x", f.x);
  if (a.grad_state) check_same_dtype(op, "grad_state", *a.grad_state, "x", f.x);
  const CausalConv1dShape s = check_shapes(op, f);
  if (a.grad_out) check_placed(op, "grad_out", *a.grad_out, f.x.sym_sizes(), f.x);
  if (a.grad_state)
    check_placed(op, "grad_state", *a.grad_state, c10::SymDimVector{s.sequences, s.C, s.W - 1},
                 f.x);
  check_choice(op, "activation", kConvActivations, f.activation);
  FULGURITE_CHECK_VALUE(f.bias || !a.output_mask[kConvBias],
                        "expected bias, whose gradient is asked for, got none");
  FULGURITE_CHECK_VALUE(f.initial_state || !a.output_mask[kConvInitialState],
                        "expected initial_state, whose gradient is asked for, got none");
  return s;
}

SelectiveScanShape check_selective_scan(const SelectiveScanArgs& a) {
  constexpr const char* op = SelectiveScanArgs::kName;
  check_scan_types(op, a);
  return check_scan_shapes(op, a);
}

SelectiveScanShape check_selective_scan_backward(const SelectiveScanBackwardArgs& a) {
  constexpr const char* op = SelectiveScanBackwardArgs::kName;
  const SelectiveScanArgs& f = a.forward;
  check_scan_types(op, f);
  if (a.grad_out) check_same_dtype(op, "grad_out", *a.grad_out, "u", f.u);
  if (a.grad_state) check_wide(op, "grad_state", *a.grad_state, f.u);
  check_wide(op, "kept", a.kept, f.u);
  const SelectiveScanShape s = check_scan_shapes(op, f);
  if (a.grad_out) check_placed(op, "grad_out", *a.grad_out, f.u.sym_sizes(), f.u);
  if (a.grad_state)
    check_placed(op, "grad_state", *a.grad_state, c10::SymDimVector{s.sequences, s.D, s.N}, f.u);
  check_placed(op, "kept", a.kept, c10::SymDimVector{kept_blocks(f, s), s.D, s.N}, f.u);
  const std::pair<const char*, std::pair<SelectiveScanInput, bool>> optional[] = {
      {"D", {kScanD, f.D.has_value()}},
      {"z", {kScanZ, f.z.has_value()}},
      {"delta_bias", {kScanDeltaBias, f.delta_bias.has_value()}},
      {"initial_state", {kScanInitialState, f.initial_state.has_value()}}};
  for (const auto& [name, input] : optional)
    FULGURITE_CHECK_VALUE(input.second || !a.output_mask[input.first], "expected ", name,
                          ", whose gradient is asked for, got none");
  return s;
}

/// Every sequence has a block of its own for its last positions, so there are never more.
c10::SymInt kept_blocks(const SelectiveScanArgs& a, const SelectiveScanShape& s) {
  return a.u.sym_size(0) * s.L / kKeptEvery + s.sequences;
}

}  // namespace fulgurite
