// The arguments of attention and of its gradients (common/arguments.h).
#pragma once

#include "common/arguments.h"

namespace fulgurite {

using AttentionResult = std::tuple<Tensor, Tensor>;
using AttentionGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

/// What turns products into scores and weights: the keyword arguments of attention.
struct ScoreArgs {
  OptionalTensor bias, mask, sink, alibi_slopes, block_layout;
  c10::SymInt block_size = 0;
  std::optional<double> scale;
  bool causal = false;
  std::string_view align = "bottom_right";
  c10::SymInt window_left = -1, window_right = -1, sink_tokens = 0, chunk_size = 0;
  double softcap = 0;
  std::string_view score = "softmax";
  double score_scale = 1, dropout_p = 0;
  OptionalTensor philox;
  FULGURITE_MEMBERS(bias, mask, sink, alibi_slopes, block_layout, block_size, scale, causal, align,
                    window_left, window_right, sink_tokens, chunk_size, softcap, score, score_scale,
                    dropout_p, philox)
};

struct AttentionArgs {
  static constexpr const char* kName = "attention";
  using Result = AttentionResult;
  Tensor query, key, value;
  ScoreArgs scores;
  FULGURITE_MEMBERS(query, key, value, scores)
  FULGURITE_INPUTS(query, key, value, scores.bias, scores.sink)
};

/// Which gradients are wanted, in the order of the results.
enum AttentionInput { kQuery, kKey, kValue, kBias, kSink, kAttentionInputs };

struct AttentionBackwardArgs {
  static constexpr const char* kName = "_attention_backward";
  using Result = AttentionGradients;
  OptionalTensor grad_out, grad_lse;
  Tensor query, key, value, out, lse;
  ScoreArgs scores;
  std::array<bool, kAttentionInputs> output_mask;
  FULGURITE_MEMBERS(grad_out, grad_lse, query, key, value, out, lse, scores, output_mask)
  FULGURITE_INPUTS(grad_out, grad_lse, query, key, value, scores.bias, scores.sink)
};

struct RopeArgs {
  static constexpr const char* kName = "rope";
  using Result = Tensor;
  Tensor x, cos, sin;
  bool interleaved, conjugate;
  FULGURITE_MEMBERS(x, cos, sin, interleaved, conjugate)
  FULGURITE_INPUTS(x)
};

}  // namespace fulgurite
