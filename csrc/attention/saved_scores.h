// What an autograd function keeps of the score arguments, for backwards of the attention family.
#pragma once

#include "attention/args.h"
#include "common/autograd.h"
#include "common/check.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

namespace fulgurite {

/// Numbers go into ctx; six tensors to the end of `tensors`, which the caller saves. bias and sink come from the autograd
/// function's own arguments.
inline void save_scores(torch::autograd::AutogradContext* ctx, const ScoreArgs& s,
                        const OptionalTensor& bias, const OptionalTensor& sink,
                        torch::autograd::variable_list& tensors) {
  auto& saved = ctx->saved_data;
  saved["block_size"] = s.block_size;
  saved["scale"] = s.scale;
  saved["causal"] = s.causal;
  saved["align"] = std::string(s.align);
  saved["window_left"] = s.window_left;
  saved["window_right"] = s.window_right;
  saved["sink_tokens"] = s.sink_tokens;
  saved["chunk_size"] = s.chunk_size;
  saved["softcap"] = s.softcap;
  saved["score"] = std::string(s.score);
  saved["score_scale"] = s.score_scale;
  saved["dropout_p"] = s.dropout_p;
  for (const OptionalTensor* t :
       {&bias, &s.mask, &sink, &s.alibi_slopes, &s.block_layout, &s.philox})
    tensors.push_back(t->value_or(Tensor()));
}

/// The arguments again; their tensors stand in `tensors` from `first` on.
inline ScoreArgs saved_scores(torch::autograd::AutogradContext* ctx,
                              const torch::autograd::variable_list& tensors, size_t first) {
  auto& saved = ctx->saved_data;
  return {if_defined(tensors[first]),          if_defined(tensors[first + 1]),
          if_defined(tensors[first + 2]),      if_defined(tensors[first + 3]),
          if_defined(tensors[first + 4]),      saved["block_size"].toInt(),
          saved["scale"].toOptional<double>(), saved["causal"].toBool(),
          saved["align"].toStringRef(),        saved["window_left"].toInt(),
          saved["window_right"].toInt(),       saved["sink_tokens"].toInt(),
          saved["chunk_size"].toInt(),         saved["softcap"].toDouble(),
          saved["score"].toStringRef(),        saved["score_scale"].toDouble(),
          saved["dropout_p"].toDouble(),       if_defined(tensors[first + 5])};
}

inline void check_slopes_need_no_gradient(const char* op, const OptionalTensor& slopes) {
  FULGURITE_CHECK_SERVED(!slopes || !slopes->requires_grad() || !at::GradMode::is_enabled(),
                         "the gradient of alibi_slopes is not supported; pass them detached");
}

}  // namespace fulgurite
