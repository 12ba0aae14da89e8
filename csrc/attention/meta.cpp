// Shapes and dtypes of the results, for fake tensors, export and compile.
#include "attention/check.h"
#include "common/check.h"
#include "common/fresh.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace fulgurite {
namespace {

AttentionResult attention_meta(const AttentionArgs& args) {
  const AttentionShape s = check_attention(args);
  const auto options = args.query.options();
  return {
      at::empty_symint({s.B, s.Hq, s.N, s.Dv}, options),  // out (B,Hq,N,Dv)
      at::empty_symint({s.B, s.Hq, s.N},
                       options.dtype(accumulate_type(args.query.scalar_type())))};  // lse (B,Hq,N)
}

AttentionGradients attention_backward_meta(const AttentionBackwardArgs& args) {
  check_attention_backward(args);
  const auto gradient = [&](AttentionInput input, const OptionalTensor& like) {
    return fresh_gradient(args.output_mask[input], like, args.query);
  };
  return {gradient(kQuery, args.query), gradient(kKey, args.key), gradient(kValue, args.value),
          gradient(kBias, args.scores.bias), gradient(kSink, args.scores.sink)};
}

AttentionDoubleGradients attention_double_backward_meta(const AttentionDoubleBackwardArgs& args) {
  check_attention_double_backward(args);
  const auto gradient = [&](int input) {
    return fresh_gradient(args.output_mask[input], args.input(input), args.query);
  };
  return {gradient(kOfGradOut), gradient(kOfGradLse), gradient(kOfQuery), gradient(kOfKey),
          gradient(kOfValue),   gradient(kOfBias),    gradient(kOfSink)};
}

Tensor rope_meta(const Tensor& x, const Tensor& cos, const Tensor& sin, bool, bool) {
  check_rope(x, cos, sin);
  return fresh_like(x);
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, Meta, m) {
  using namespace fulgurite;
  m.impl("attention", attention_from_schema<attention_meta>);
  m.impl("_attention_backward", attention_backward_from_schema<attention_backward_meta>);
  m.impl("_attention_double_backward",
         attention_double_backward_from_schema<attention_double_backward_meta>);
  m.impl("rope", rope_meta);
}
