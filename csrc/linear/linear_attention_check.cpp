#include "common/check.h"
#include "linear/check_inputs.h"
#include "linear/linear_attention.h"

namespace fulgurite {
namespace {

void check_types(const char* op, const LinearAttentionArgs& a) {
  check_float(op, "query", a.query);
  check_same_dtype(op, "key", a.key, "query", a.query);
  check_same_dtype(op, "value", a.value, "query", a.query);
  if (a.log_decay) check_own_or_float32(op, "log_decay", *a.log_decay, "query", a.query);
  if (a.bonus) check_own_or_float32(op, "bonus", *a.bonus, "query", a.query);
  if (a.initial_state) check_wide(op, "initial_state", *a.initial_state, a.query);
  if (a.initial_norm) check_wide(op, "initial_norm", *a.initial_norm, a.query);
  if (a.cu_seqlens) check_offsets_type(op, "cu_seqlens", *a.cu_seqlens);
}

void check_log_decay(const char* op, const LinearAttentionShape& s, const Tensor& log_decay,
                     const Tensor& query) {
  c10::SymDimVector sizes{s.B, s.H, s.N, s.D};
  if (log_decay.dim() == 1) sizes = {s.H};
  if (log_decay.dim() == 3) sizes.pop_back();
  FULGURITE_CHECK(log_decay.dim() == 1 || log_decay.dim() == 3 || log_decay.dim() == 4,
                  "expected log_decay of shape [H], [B, H, N] or [B, H, N, D], got ",
                  log_decay.sym_sizes());
  check_placed(op, "log_decay", log_decay, sizes, query);
}

LinearAttentionShape check_shapes(const char* op, const LinearAttentionArgs& a) {
  check_dim(op, "query", a.query, 4, "[B, Hk, N, D]");
  check_dim(op, "key", a.key, 4, "[B, Hk, M, D]");
  check_dim(op, "value", a.value, 4, "[B, H, M, Dv]");
  LinearAttentionShape s{
      a.query.sym_size(0), a.value.sym_size(1), a.query.sym_size(1), a.query.sym_size(2),
      a.query.sym_size(2), a.query.sym_size(3), a.value.sym_size(3), 0};
  // Without causality keys and values have a length of their own, but in a pack.
  if (!a.causal && !a.cu_seqlens) s.M = a.key.sym_size(2);
  check_placed(op, "key", a.key, c10::SymDimVector{s.B, s.Hk, s.M, s.D}, a.query);
  check_placed(op, "value", a.value, c10::SymDimVector{s.B, s.H, s.M, s.Dv}, a.query);
  FULGURITE_CHECK(s.H == 0 || (s.Hk > 0 && s.H % s.Hk == 0),
                  "expected the heads of query and key to divide H = ", s.H, ", got ", s.Hk);
  s.sequences = check_sequences(op, "query", a.query, a.cu_seqlens);
  if (a.log_decay) check_log_decay(op, s, *a.log_decay, a.query);
  if (a.bonus) check_placed(op, "bonus", *a.bonus, c10::SymDimVector{s.H, s.D}, a.query);
  if (a.initial_state) check_placed(op, "initial_state", *a.initial_state, s.state(), a.query);
  if (a.initial_norm) check_placed(op, "initial_norm", *a.initial_norm, s.norm(), a.query);
  return s;
}

void check_values(const char* op, const LinearAttentionArgs& a) {
  check_finite(op, "scale", a.scale);
  check_not_negative(op, "eps", a.eps);
  FULGURITE_CHECK_VALUE(a.exclusive_chunk >= 0, "expected exclusive_chunk >= 0, got ",
                        a.exclusive_chunk);
  FULGURITE_CHECK_VALUE(a.causal || !(a.log_decay || a.bonus || a.exclusive_chunk > 0),
                        "expected no log_decay, bonus or exclusive_chunk with causal=False, got ",
                        a.log_decay ? "log_decay"
                        : a.bonus   ? "bonus"
                                    : "exclusive_chunk");
  FULGURITE_CHECK_VALUE(!a.normalize || !(a.bonus || a.exclusive_chunk > 0),
                        "expected no bonus or exclusive_chunk with normalize=True, got ",
                        a.bonus ? "bonus" : "exclusive_chunk");
  FULGURITE_CHECK_VALUE(!a.bonus || a.exclusive_chunk == 0,
                        "expected no exclusive_chunk with bonus, got ", a.exclusive_chunk);
}

}  // namespace

c10::SymDimVector LinearAttentionShape::kept(const LinearAttentionArgs& a) const {
  const ChunkGrid grid = chunk_grid(a.per_feature(), a.exclusive_chunk);
  return {a.causal ? B * N / grid.least_block() + sequences : sequences, H, D,
          a.normalize ? Dv + 1 : Dv};
}

c10::SymDimVector LinearAttentionShape::denominators(const LinearAttentionArgs& a) const {
  if (!a.normalize) return {0};
  return {B, H, N};
}

LinearAttentionShape check_linear_attention(const LinearAttentionArgs& a) {
  constexpr const char* op = LinearAttentionArgs::kName;
  check_types(op, a);
  const LinearAttentionShape s = check_shapes(op, a);
  check_values(op, a);
  return s;
}

LinearAttentionShape check_linear_attention_backward(const LinearAttentionBackwardArgs& a) {
  constexpr const char* op = LinearAttentionBackwardArgs::kName;
  const LinearAttentionArgs& f = a.forward;
  check_types(op, f);
  if (a.out) check_same_dtype(op, "out", *a.out, "query", f.query);
  if (a.grad_out) check_same_dtype(op, "grad_out", *a.grad_out, "query", f.query);
  if (a.grad_state) check_wide(op, "grad_state", *a.grad_state, f.query);
  if (a.grad_norm) check_wide(op, "grad_norm", *a.grad_norm, f.query);
  check_wide(op, "kept", a.kept, f.query);
  check_wide(op, "denominators", a.denominators, f.query);
  const LinearAttentionShape s = check_shapes(op, f);
  if (a.out) check_placed(op, "out", *a.out, s.out(), f.query);
  if (a.grad_out) check_placed(op, "grad_out", *a.grad_out, s.out(), f.query);
  if (a.grad_state) check_placed(op, "grad_state", *a.grad_state, s.state(), f.query);
  if (a.grad_norm) check_placed(op, "grad_norm", *a.grad_norm, s.norm(), f.query);
  check_values(op, f);
  FULGURITE_CHECK_VALUE(a.out || !f.normalize, "expected out with normalize=True, got none");
  check_placed(op, "kept", a.kept, s.kept(f), f.query);
  check_placed(op, "denominators", a.denominators, s.denominators(f), f.query);
  const std::pair<const char*, std::pair<LinearAttentionInput, bool>> optional[] = {
      {"log_decay", {kLinearLogDecay, f.log_decay.has_value()}},
      {"bonus", {kLinearBonus, f.bonus.has_value()}},
      {"initial_state", {kLinearInitialState, f.initial_state.has_value()}},
      {"initial_norm", {kLinearInitialNorm, f.initial_norm.has_value()}}};
  for (const auto& [name, input] : optional)
    FULGURITE_CHECK_VALUE(input.second || !a.output_mask[input.first], "expected ", name,
                          ", whose gradient is asked for, got none");
  return s;
}

}  // namespace fulgurite
