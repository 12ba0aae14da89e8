// Linear attention: its arguments (common/arguments.h), and its validation and shape inference, once for Meta, CPU and CUDA.
#pragma once

#include "common/arguments.h"
#include "linear/rules/linear_attention.h"

namespace fulgurite {

struct LinearAttentionArgs {
  static constexpr const char* kName = "linear_attention";
  using Result = std::tuple<Tensor, Tensor, Tensor>;  // out, state, norm
  Tensor query, key, value;
  OptionalTensor log_decay, bonus;
  double scale;
  bool causal, normalize;
  double eps;
  int64_t exclusive_chunk;
  OptionalTensor initial_state, initial_norm, cu_seqlens;
  FULGURITE_MEMBERS(query, key, value, log_decay, bonus, scale, causal, normalize, eps,
                    exclusive_chunk, initial_state, initial_norm, cu_seqlens)
  FULGURITE_INPUTS(query, key, value, log_decay, bonus, initial_state, initial_norm)

  bool per_feature() const { return log_decay && log_decay->dim() == 4; }
};

/// The same call where the backward will want states and denominators.
struct LinearAttentionForwardArgs : LinearAttentionArgs {
  static constexpr const char* kName = "_linear_attention_forward";
  using Result = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;  // …, kept, denominators
};

enum LinearAttentionInput {
  kLinearQuery,
  kLinearKey,
  kLinearValue,
  kLinearLogDecay,
  kLinearBonus,
  kLinearInitialState,
  kLinearInitialNorm,
  kLinearInputs
};

struct LinearAttentionBackwardArgs {
  static constexpr const char* kName = "_linear_attention_backward";
  using Result = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;  // as inputs
  OptionalTensor grad_out, grad_state, grad_norm;
  OptionalTensor out;  // where it was normalised
  Tensor kept, denominators;
  LinearAttentionArgs forward;
  std::array<bool, kLinearInputs> output_mask;
  FULGURITE_MEMBERS(grad_out, grad_state, grad_norm, out, kept, denominators, forward, output_mask)
};

struct LinearAttentionShape {
  c10::SymInt B, H, Hk, N, M, D, Dv, sequences;

  c10::SymDimVector out() const { return {B, H, N, Dv}; }
  c10::SymDimVector state() const { return {sequences, H, D, Dv}; }
  c10::SymDimVector norm() const { return {sequences, H, D}; }
  /// States before each block, the columns that normalising adds among theirs; of what is not causal the last alone.
  c10::SymDimVector kept(const LinearAttentionArgs& args) const;
  /// What outputs were divided by, where they were.
  c10::SymDimVector denominators(const LinearAttentionArgs& args) const;
};

LinearAttentionShape check_linear_attention(const LinearAttentionArgs& args);
LinearAttentionShape check_linear_attention_backward(const LinearAttentionBackwardArgs& args);

}  // namespace fulgurite
