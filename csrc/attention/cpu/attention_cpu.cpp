// Attention on the CPU, torch side: tensors to Params, outputs and workspace, tasks.
#include "attention/check.h"
#include "attention/cpu/params.h"
#include "common/check.h"
#include "common/dtype.h"
#include "common/tasks.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace fulgurite {

FULGURITE_KERNEL(attention_forward, attention_pack, AttentionTaskFn);
FULGURITE_KERNEL(attention_forward, attention_forward, AttentionTaskFn);
FULGURITE_KERNEL(attention_forward, attention_forward_layout, AttentionLayoutFn);
FULGURITE_KERNEL(attention_backward, attention_grad_key_value, AttentionTaskFn);
FULGURITE_KERNEL(attention_backward, attention_grad_query, AttentionTaskFn);
FULGURITE_KERNEL(attention_backward, attention_backward_layout, AttentionLayoutFn);
FULGURITE_KERNEL(attention_backward_bias, attention_grad_bias, AttentionTaskFn);
FULGURITE_KERNEL(attention_backward_bias, attention_grad_sink, AttentionTaskFn);

namespace {

int64_t blocks(int64_t n, int64_t block) { return (n + block - 1) / block; }

Tensor4 heads_of_rows(const OptionalTensor& t) {
  return t ? Tensor4{t->const_data_ptr(), {t->stride(0), t->stride(1), t->stride(2), t->stride(3)}}
           : Tensor4{nullptr, {0, 0, 0, 0}};
}
/// lse and its gradient: (B,Hq,N).
Tensor4 heads_of_numbers(const OptionalTensor& t) {
  return t ? Tensor4{t->const_data_ptr(), {t->stride(0), t->stride(1), t->stride(2), 0}}
           : Tensor4{nullptr, {0, 0, 0, 0}};
}
/// Of a tensor that the operator made.
Output4 output(const Tensor& t) {
  return {t.mutable_data_ptr(), {t.stride(0), t.stride(1), t.stride(2)}};
}

/// Right-aligned to four dimensions; broadcast dimensions get stride 0.
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
  rule.window_left = std::min(a.window_left, widest);
  rule.window_right = std::min(a.window_right, widest);
  rule.sink_tokens = a.sink_tokens;
  rule.chunk_size = a.chunk_size;
  rule.mask = score_tensor(a.mask);
  rule.layout = score_tensor(a.block_layout);
  rule.block_size = a.block_size;
  rule.bias = score_tensor(a.bias);
  if (a.bias) rule.bias_dtype = kernel_dtype(a.bias->scalar_type());
  return rule;
}

DropoutRule dropout_rule(const ScoreArgs& a, int64_t heads) {
  DropoutRule d{};
  d.active = a.dropout_p > 0;
  if (!d.active) return d;
  const int64_t stride = a.philox->stride(0);
  const auto* const words = a.philox->const_data_ptr<int64_t>();
  const auto seed = static_cast<uint64_t>(words[0]), offset = static_cast<uint64_t>(words[stride]);
  d.key = {static_cast<uint32_t>(seed),
           static_cast<uint32_t>(seed >> 32) ^ static_cast<uint32_t>(offset >> 32)};
  d.offset = static_cast<uint32_t>(offset);
  d.threshold = static_cast<uint32_t>(std::min(a.dropout_p * 0x1p32, 0x1p32 - 1));
  d.inverse_keep = 1.0 / (1.0 - a.dropout_p);
  d.heads = heads;
  return d;
}

ScoreKind score_kind(std::string_view score) {
  return score == "softmax" ? ScoreKind::kSoftmax
         : score == "relu2" ? ScoreKind::kRelu2
                            : ScoreKind::kLaplace;
}

/// Params with everything that its pointers need to stay alive.
struct AttentionCall {
  AttentionParams p{};
  std::vector<Sequence> sequences;
  std::vector<Tensor> buffers;

  AttentionCall(const Tensor& query, const Tensor& key, const Tensor& value,
                const ScoreArgs& scores) {
    const at::ScalarType acc = accumulate_type(query.scalar_type());
    p.dtype = kernel_dtype(query.scalar_type());
    p.Hq = query.size(1);
    p.Hkv = key.size(1);
    p.group = p.Hkv ? p.Hq / p.Hkv : 0;
    p.D = query.size(3);
    p.Dv = value.size(3);
    p.scale = attention_scale(scores.scale, query);
    p.softcap = scores.softcap;
    p.score = score_kind(scores.score);
    p.score_scale = scores.score_scale;
    p.rule = score_rule(scores, query.size(2) + key.size(2));
    p.bottom_right = scores.align == "bottom_right";
    p.dropout = dropout_rule(scores, p.Hq);
    p.query = heads_of_rows(query);
    p.key = heads_of_rows(key);
    p.value = heads_of_rows(value);
    if (scores.sink) p.sink = keep(scores.sink->to(acc).contiguous());
    if (scores.alibi_slopes) {
      p.alibi_slopes = keep(scores.alibi_slopes->contiguous());
      p.alibi_batch_stride = scores.alibi_slopes->dim() == 2 ? p.Hq : 0;
    }
  }

  /// Every batch entry a problem of the same size.
  void add_batch(int64_t B, int64_t N, int64_t M) {
    for (int64_t b = 0; b < B; ++b) add_sequence(0, N, 0, M);
  }
  void add_sequence(int64_t query_start, int64_t N, int64_t key_start, int64_t M) {
    sequences.push_back({query_start, N, key_start, M, p.query_blocks, p.key_blocks});
    p.query_blocks += blocks(N, kQueryBlock);
    p.key_blocks += blocks(M, kKeyBlock);
    pairs += N * M;
    p.B = static_cast<int64_t>(sequences.size());
    p.sequences = sequences.data();
  }

  void* keep(Tensor tensor) {
    buffers.push_back(std::move(tensor));
    return buffers.back().mutable_data_ptr();
  }
  void add_packed(void*& pointer, int64_t block_elements, const Tensor& like) {
    pointer = keep(at::empty({packed_blocks() * block_elements},
                             like.options().dtype(accumulate_type(like.scalar_type()))));
  }
  void pack(const Tensor& like) {
    p.key_finite =
        static_cast<bool*>(keep(at::empty({2, packed_blocks()}, like.options().dtype(at::kBool))));
    p.value_finite = p.key_finite + packed_blocks();
    run(attention_pack_kernel, packed_blocks(), packed_blocks() * kKeyBlock * (p.D + p.Dv), 0);
  }
  void run(Kernel<AttentionTaskFn>& kernel, int64_t tasks, int64_t cost,
           int64_t scratch_bytes) const {
    const auto fn = kernel.get();
    run_tasks(kernel, {tasks, cost, scratch_bytes},
              [&](int64_t task, void* scratch) { fn(p, task, scratch); });
  }

  int64_t packed_blocks() const { return p.key_blocks * p.Hkv; }
  int64_t products() const { return pairs * p.Hq * (p.D + p.Dv + 1); }

  int64_t pairs = 0;  // of queries and keys, over all sequences, per head
};

void run_forward(AttentionCall& call, const Tensor& like) {
  AttentionParams& p = call.p;
  AttentionLayout layout{};
  attention_forward_layout_kernel.get()(p, &layout);
  call.add_packed(p.key_transposed, layout.key_transposed, like);
  call.add_packed(p.value_rows, layout.value_rows, like);
  call.pack(like);
  call.run(attention_forward_kernel, p.query_blocks * p.Hq, call.products(),
           layout.forward_scratch);
}

void run_backward(AttentionCall& call, const Tensor& like) {
  AttentionParams& p = call.p;
  AttentionLayout layout{};
  attention_forward_layout_kernel.get()(p, &layout);
  attention_backward_layout_kernel.get()(p, &layout);
  call.add_packed(p.key_transposed, layout.key_transposed, like);
  call.add_packed(p.value_transposed, layout.value_transposed, like);
  if (p.grad_query.data) call.add_packed(p.key_rows, layout.key_rows, like);
  call.pack(like);
  if (p.grad_key.data || p.grad_value.data)
    call.run(attention_grad_key_value_kernel, p.key_blocks * p.Hkv, call.products(),
             layout.grad_key_value_scratch);
  if (p.grad_query.data)
    call.run(attention_grad_query_kernel, p.query_blocks * p.Hq, call.products(),
             layout.grad_query_scratch);
  if (p.grad_sink)
    call.run(attention_grad_sink_kernel, p.Hq, call.products() / kKeyBlock,
             layout.grad_sink_scratch);
  if (p.grad_bias) {
    const int64_t rows = p.bias_shape[2] == 1 ? 1 : blocks(p.bias_shape[2], kQueryBlock);
    const int64_t columns = p.bias_shape[3] == 1 ? 1 : blocks(p.bias_shape[3], kKeyBlock);
    call.run(attention_grad_bias_kernel, p.bias_shape[0] * p.bias_shape[1] * rows * columns,
             call.products(), layout.grad_bias_scratch);
  }
}

AttentionResult attention_cpu(const AttentionArgs& args) {
  check_attention(args);
  const Tensor& query = args.query;
  AttentionCall call(query, args.key, args.value, args.scores);
  call.add_batch(query.size(0), query.size(2), args.key.size(2));
  Tensor out =
      at::empty({query.size(0), query.size(1), query.size(2), args.value.size(3)}, query.options());
  Tensor lse = at::empty({query.size(0), query.size(1), query.size(2)},
                         query.options().dtype(accumulate_type(query.scalar_type())));
  call.p.out = output(out);
  call.p.lse = output(lse);
  run_forward(call, query);
  return {out, lse};
}

/// grad_bias's kernel walks whole rows or columns: where there is nothing to sum the gradient is zero.
void prepare_grad_bias(AttentionCall& call, const Tensor& bias, Tensor& grad) {
  if (grad.numel() == 0) return;
  if (call.pairs == 0 || call.p.Hq == 0) {
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
  AttentionCall call(query, args.key, args.value, args.scores);
  call.add_batch(query.size(0), query.size(2), args.key.size(2));
  AttentionParams& p = call.p;
  p.saved_out = heads_of_rows(args.out);
  p.saved_lse = heads_of_numbers(args.lse);
  p.grad_out = heads_of_rows(args.grad_out);
  p.grad_lse = args.scores.score == "softmax" ? heads_of_numbers(args.grad_lse)
                                              : Tensor4{nullptr, {0, 0, 0, 0}};
  const auto gradient = [&](AttentionInput input, const OptionalTensor& like) {
    if (!args.output_mask[input])
      return at::empty({0}, query.options().memory_format(at::MemoryFormat::Contiguous));
    return at::empty(like->sizes(), like->options().memory_format(at::MemoryFormat::Contiguous));
  };
  Tensor grad_query = gradient(kQuery, args.query), grad_key = gradient(kKey, args.key),
         grad_value = gradient(kValue, args.value);
  Tensor grad_bias = gradient(kBias, args.scores.bias),
         grad_sink = gradient(kSink, args.scores.sink);
  if (args.output_mask[kQuery]) p.grad_query = output(grad_query);
  if (args.output_mask[kKey]) p.grad_key = output(grad_key);
  if (args.output_mask[kValue]) p.grad_value = output(grad_value);
  if (args.output_mask[kBias]) prepare_grad_bias(call, *args.scores.bias, grad_bias);
  Tensor grad_sink_acc;
  if (args.output_mask[kSink]) {
    grad_sink_acc = at::empty({p.Hq}, query.options().dtype(accumulate_type(query.scalar_type())));
    p.grad_sink = grad_sink_acc.mutable_data_ptr();
  }
  run_backward(call, query);
  if (args.output_mask[kSink]) grad_sink.copy_(grad_sink_acc);
  return {grad_query, grad_key, grad_value, grad_bias, grad_sink};
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, CPU, m) {
  using namespace fulgurite;
  m.impl("attention", attention_from_schema<attention_cpu>);
  m.impl("_attention_backward", attention_backward_from_schema<attention_backward_cpu>);
}
