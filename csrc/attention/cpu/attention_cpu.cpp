// Attention on the CPU, torch side: outputs, gradients and their places in Params.
#include "attention/check.h"
#include "attention/cpu/call.h"
#include "common/check.h"
#include "common/fresh.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace fulgurite {
namespace {

AttentionCall batch_call(const char* op, Pass pass, const Tensor& query, const Tensor& key,
                         const Tensor& value, const ScoreArgs& scores) {
  AttentionCall call(op, pass, query, key, value, false, query.size(2) + key.size(2), scores);
  call.add_batch(query.size(0), query.size(2), key.size(2));
  return call;
}

AttentionResult attention_cpu(const AttentionArgs& args) {
  check_attention(args);
  const Tensor& query = args.query;
  AttentionCall call =
      batch_call("attention", Pass::kForward, query, args.key, args.value, args.scores);
  Tensor out =
      at::empty({query.size(0), query.size(1), query.size(2), args.value.size(3)}, query.options());
  Tensor lse = at::empty({query.size(0), query.size(1), query.size(2)}, accumulate_options(query));
  call.p.out = head_output(out, batch_strides(out));
  call.p.lse = head_output(lse, batch_strides(lse));
  call.forward();
  return {out, lse};
}

/// grad_bias's kernel walks whole rows or columns: where there is nothing to sum the gradient is zero.
void prepare_grad_bias(AttentionCall& call, const Tensor& bias, Tensor& grad) {
  if (grad.numel() == 0) return;
  if (call.pairs() == 0 || call.p.Hq == 0) {
    grad.zero_();
    return;
  }
  call.p.grad_bias = grad.mutable_data_ptr();
  for (int64_t d = 0; d < 4; ++d) {
    const int64_t own = d - (4 - bias.dim());
    call.p.bias_shape[d] = own < 0 ? 1 : bias.size(own);
  }
}

AttentionGradients attention_backward_cpu(const AttentionBackwardArgs& args) {
  check_attention_backward(args);
  const Tensor& query = args.query;
  AttentionCall call =
      batch_call("_attention_backward", Pass::kBackward, query, args.key, args.value, args.scores);
  AttentionParams& p = call.p;
  p.saved_out = head_rows(args.out, batch_strides(args.out));
  p.saved_lse = head_rows(args.lse, batch_strides(args.lse));
  if (args.grad_out) p.grad_out = head_rows(args.grad_out, batch_strides(*args.grad_out));
  if (args.grad_lse && p.score == ScoreKind::kSoftmax)
    p.grad_lse = head_rows(args.grad_lse, batch_strides(*args.grad_lse));
  const auto gradient = [&](AttentionInput input, const OptionalTensor& like) {
    return fresh_gradient(args.output_mask[input], like, query);
  };
  Tensor grad_query = gradient(kQuery, args.query), grad_key = gradient(kKey, args.key),
         grad_value = gradient(kValue, args.value);
  Tensor grad_bias = gradient(kBias, args.scores.bias),
         grad_sink = gradient(kSink, args.scores.sink);
  if (args.output_mask[kQuery]) p.grad_query = head_output(grad_query, batch_strides(grad_query));
  if (args.output_mask[kKey]) p.grad_key = head_output(grad_key, batch_strides(grad_key));
  if (args.output_mask[kValue]) p.grad_value = head_output(grad_value, batch_strides(grad_value));
  if (args.output_mask[kBias]) prepare_grad_bias(call, *args.scores.bias, grad_bias);
  if (args.output_mask[kSink]) call.want_sink(grad_sink);
  call.backward();
  return {grad_query, grad_key, grad_value, grad_bias, grad_sink};
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, CPU, m) {
  using namespace fulgurite;
  implement<attention_cpu>(m);
  implement<attention_backward_cpu>(m);
}
