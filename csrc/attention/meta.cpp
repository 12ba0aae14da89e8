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

Tensor rope_meta(const RopeArgs& args) {
  check_rope(args);
  return fresh_like(args.x);
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, Meta, m) {
  using namespace fulgurite;
  implement<attention_meta>(m);
  implement<attention_backward_meta>(m);
  implement<attention_double_backward_meta>(m);
  implement<rope_meta>(m);
}
