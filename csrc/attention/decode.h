// The arguments of attention_decode, and their validation for Meta, CPU and CUDA.
#pragma once

#include "attention/check.h"

namespace fulgurite {

/// Decoding has no bias, layout, chunks, right windows, dropout and other scores.
struct DecodeScoreArgs : ScoreArgs {
  FULGURITE_MEMBERS(mask, sink, alibi_slopes, scale, causal, window_left, sink_tokens, softcap)
};

struct DecodeArgs {
  static constexpr const char* kName = "attention_decode";
  using Result = AttentionResult;
  Tensor query, key_cache, value_cache, cache_lens;
  OptionalTensor page_table;
  DecodeScoreArgs scores;
  FULGURITE_MEMBERS(query, key_cache, value_cache, cache_lens, page_table, scores)
};

/// M is Mmax.
AttentionShape check_decode(const DecodeArgs& args);

}  // namespace fulgurite
