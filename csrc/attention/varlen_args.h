// The arguments of attention_varlen and its backward.
#pragma once

#include "attention/args.h"

namespace fulgurite {

using VarlenGradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

/// Packed sequences have no bias, mask, layout, chunks and other scores: those stay as if they were not given.
struct VarlenScoreArgs : ScoreArgs {
  FULGURITE_MEMBERS(sink, alibi_slopes, scale, causal, align, window_left, window_right,
                    sink_tokens, softcap, dropout_p, philox)
};

struct VarlenArgs {
  static constexpr const char* kName = "attention_varlen";
  using Result = AttentionResult;
  Tensor query, key, value, cu_seqlens_q, cu_seqlens_k;
  VarlenScoreArgs scores;
  FULGURITE_MEMBERS(query, key, value, cu_seqlens_q, cu_seqlens_k, scores)
  FULGURITE_INPUTS(query, key, value, scores.sink)
};

enum VarlenInput { kVarlenQuery, kVarlenKey, kVarlenValue, kVarlenSink, kVarlenInputs };

struct VarlenBackwardArgs {
  static constexpr const char* kName = "_attention_varlen_backward";
  using Result = VarlenGradients;
  OptionalTensor grad_out, grad_lse;
  Tensor query, key, value, out, lse, cu_seqlens_q, cu_seqlens_k;
  VarlenScoreArgs scores;
  std::array<bool, kVarlenInputs> output_mask;
  FULGURITE_MEMBERS(grad_out, grad_lse, query, key, value, out, lse, cu_seqlens_q, cu_seqlens_k,
                    scores, output_mask)
};

}  // namespace fulgurite
