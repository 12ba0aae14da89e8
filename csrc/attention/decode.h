// The arguments of attention_decode, and their validation for Meta, CPU and CUDA.
#pragma once

#include "attention/check.h"

namespace fulgurite {

struct DecodeArgs {
  Tensor query, key_cache, value_cache, cache_lens;
  OptionalTensor page_table;
  ScoreArgs scores;  // without bias, layout, chunks, right windows, dropout and other scores

  using Signature = AttentionResult(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                    const OptionalTensor&, const OptionalTensor&,
                                    const OptionalTensor&, const OptionalTensor&,
                                    std::optional<double>, bool, int64_t, int64_t, double);
  AttentionResult call() const {
    static const auto op = op_handle<Signature>("attention_decode");
    const ScoreArgs& s = scores;
    return op.call(query, key_cache, value_cache, cache_lens, page_table, s.mask, s.sink,
                   s.alibi_slopes, s.scale, s.causal, s.window_left, s.sink_tokens, s.softcap);
  }
};

/// The scores of decoding: every other argument as if it was not given.
inline ScoreArgs decode_scores(const OptionalTensor& mask, const OptionalTensor& sink,
                               const OptionalTensor& alibi_slopes, std::optional<double> scale,
                               bool causal, int64_t window_left, int64_t sink_tokens,
                               double softcap) {
  ScoreArgs s{};
  s.mask = mask;
  s.sink = sink;
  s.alibi_slopes = alibi_slopes;
  s.scale = scale;
  s.causal = causal;
  s.align = "bottom_right";
  s.window_left = window_left;
  s.window_right = -1;
  s.sink_tokens = sink_tokens;
  s.softcap = softcap;
  s.score = "softmax";
  s.score_scale = 1.0;
  return s;
}

template <AttentionResult (*f)(const DecodeArgs&)>
AttentionResult decode_from_schema(const Tensor& query, const Tensor& key_cache,
                                   const Tensor& value_cache, const Tensor& cache_lens,
                                   const OptionalTensor& page_table, const OptionalTensor& mask,
                                   const OptionalTensor& sink, const OptionalTensor& alibi_slopes,
                                   std::optional<double> scale, bool causal, int64_t window_left,
                                   int64_t sink_tokens, double softcap) {
  return f(
      {query, key_cache, value_cache, cache_lens, page_table,
       decode_scores(mask, sink, alibi_slopes, scale, causal, window_left, sink_tokens, softcap)});
}

/// M is Mmax.
AttentionShape check_decode(const DecodeArgs& args);

}  // namespace fulgurite
