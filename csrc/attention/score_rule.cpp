#include "attention/score_rule.h"

#include "common/dtype.h"

#include <algorithm>

namespace fulgurite {

ScoreTensor score_tensor(const OptionalTensor& t) {
  ScoreTensor s{nullptr, 1, {0, 0, 0, 0}};
  if (!t) return s;
  s.data = t->const_data_ptr();
  s.batches = t->dim() == 4 ? t->size(0) : 1;
  for (int64_t d = 0; d < t->dim(); ++d)
    s.strides[4 - t->dim() + d] = t->size(d) == 1 ? 0 : t->stride(d);
  return s;
}

ScoreRule score_rule(const ScoreArgs& a, int64_t widest) {
  ScoreRule rule{};
  rule.causal = a.causal;
  rule.window_left = std::min(a.window_left.expect_int(), widest);
  rule.window_right = std::min(a.window_right.expect_int(), widest);
  rule.sink_tokens = a.sink_tokens.expect_int();
  rule.chunk_size = a.chunk_size.expect_int();
  rule.mask = score_tensor(a.mask);
  rule.layout = score_tensor(a.block_layout);
  rule.block_size = a.block_size.expect_int();
  rule.bias = score_tensor(a.bias);
  if (a.bias) rule.bias_dtype = kernel_dtype(a.bias->scalar_type());
  return rule;
}

}  // namespace fulgurite
