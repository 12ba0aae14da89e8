#include "attention/cpu/call.h"

#include "attention/check.h"
#include "common/check.h"
#include "common/dtype.h"
#include "common/tasks.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

namespace fulgurite {

FULGURITE_KERNEL(attention_forward, attention_pack, AttentionTaskFn);
FULGURITE_KERNEL(attention_forward, attention_forward, AttentionTaskFn);
FULGURITE_KERNEL(attention_forward, attention_forward_layout, AttentionLayoutFn);
FULGURITE_KERNEL(attention_backward, attention_backward, AttentionTaskFn);
FULGURITE_KERNEL(attention_backward, attention_reduce_query, AttentionTaskFn);
FULGURITE_KERNEL(attention_backward, attention_backward_layout, AttentionLayoutFn);
FULGURITE_KERNEL(attention_backward_bias, attention_grad_bias, AttentionTaskFn);
FULGURITE_KERNEL(attention_backward_bias, attention_reduce_bias, AttentionTaskFn);
FULGURITE_KERNEL(attention_backward_bias, attention_grad_sink, AttentionTaskFn);

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

namespace {

/// Tasks of a key/value head in the backward, and tasks that share a bias: each holds a part of dQ or dbias, so few, and
/// enough for one head alone to keep a few cores busy.
constexpr int64_t kMostSplits = 4;

int64_t query_rows(int64_t N) {
  return N <= kMostQueryRows ? std::max<int64_t>(N, 1) : kQueryBlock;
}

ScoreKind score_kind(std::string_view score) {
  return score == "softmax" ? ScoreKind::kSoftmax
         : score == "relu2" ? ScoreKind::kRelu2
                            : ScoreKind::kLaplace;
}

void run(Kernel<AttentionTaskFn>& kernel, AttentionParams& p, int64_t tasks, int64_t cost,
         int64_t scratch_bytes) {
  count_tiles(kernel, p);
  run_kernel(kernel, p, {tasks, cost, scratch_bytes});
}

}  // namespace

void count_tiles(KernelInfo& kernel, AttentionParams& p) {
  TileCount& tiles = *kernel.tiles();
  __atomic_store_n(&tiles.rows, p.B ? p.sequences[0].query_rows : 0, __ATOMIC_RELAXED);
  __atomic_store_n(&tiles.columns, kKeyBlock, __ATOMIC_RELAXED);
  p.tiles_seen = &tiles.seen;
  p.tiles_skipped = &tiles.skipped;
}

Tensor4 head_rows(const OptionalTensor& tensor, const HeadStrides& s) {
  return tensor ? Tensor4{tensor->const_data_ptr(), {s.batch, s.head, s.row, s.column}}
                : Tensor4{nullptr, {0, 0, 0, 0}};
}

HeadStrides batch_strides(const Tensor& t) {
  return {t.stride(0), t.stride(1), t.stride(2), t.dim() == 4 ? t.stride(3) : 0};
}
HeadStrides packed_strides(const Tensor& t) { return {0, t.stride(1), t.stride(0), t.stride(2)}; }
HeadStrides packed_lse_strides(const Tensor& t) { return {0, t.stride(0), t.stride(1), 0}; }

ScoreTensor score_tensor(const OptionalTensor& t) {
  ScoreTensor s{nullptr, 1, {0, 0, 0, 0}};
  if (!t) return s;
  s.data = t->const_data_ptr();
  s.batches = t->dim() == 4 ? t->size(0) : 1;
  for (int64_t d = 0; d < t->dim(); ++d)
    s.strides[4 - t->dim() + d] = t->size(d) == 1 ? 0 : t->stride(d);
  return s;
}

std::vector<int64_t> host_integers(const Tensor& tensor) {
  const Tensor wide = tensor.to(at::kLong).contiguous();
  const auto* const data = wide.const_data_ptr<int64_t>();
  return {data, data + wide.numel()};
}

AttentionCall::AttentionCall(const Tensor& query, const Tensor& key, const Tensor& value,
                             bool packed, int64_t widest, const ScoreArgs& scores)
    : options_(query.options().dtype(accumulate_type(query.scalar_type()))) {
  const auto strides = packed ? packed_strides : batch_strides;
  p.dtype = kernel_dtype(query.scalar_type());
  p.Hq = query.size(1);
  p.Hkv = key.size(1);
  p.group = p.Hkv ? p.Hq / p.Hkv : 0;
  p.D = query.size(-1);
  p.Dv = value.size(-1);
  p.scale = attention_scale(scores.scale, query);
  p.softcap = scores.softcap;
  p.score = score_kind(scores.score);
  p.score_scale = scores.score_scale;
  p.plain_scores = p.score == ScoreKind::kSoftmax && p.scale > 0 && p.softcap == 0 &&
                   !scores.bias && !scores.alibi_slopes;
  p.score_unit = p.plain_scores ? p.scale : 1.0;
  p.rule = score_rule(scores, widest);
  p.bottom_right = scores.align == "bottom_right";
  p.dropout = dropout_rule(scores, p.Hq);
  p.query = head_rows(query, strides(query));
  p.key = head_rows(key, strides(key));
  p.value = head_rows(value, strides(value));
  if (scores.sink) p.sink = keep(scores.sink->to(options_.dtype()).contiguous());
  if (scores.alibi_slopes) {
    p.alibi_slopes = keep(scores.alibi_slopes->contiguous());
    p.alibi_batch_stride = scores.alibi_slopes->dim() == 2 ? p.Hq : 0;
  }
  attention_forward_layout_kernel.get()(p, &layout_);
  attention_backward_layout_kernel.get()(p, &layout_);
}

void AttentionCall::add_sequence(int64_t query_start, int64_t N, int64_t key_start, int64_t M) {
  const int64_t packed = ceil_div(M, layout_.key_panel) * layout_.key_panel,
                blocks = ceil_div(M, kKeyBlock), splits = std::min(blocks, kMostSplits);
  add({query_start, N, key_start, M, query_rows(N), p.query_blocks, p.key_blocks, packed_keys_,
       packed, p.splits, splits, part_rows_},
      blocks);
  packed_keys_ += packed;
  p.splits += splits;
  part_rows_ += splits * N;
}

void AttentionCall::add_splits(int64_t N, int64_t M, int64_t split_keys) {
  add({0, N, 0, M, query_rows(N), p.query_blocks, p.key_blocks, 0, 0, 0, 0, 0},
      ceil_div(M, split_keys));
}

void AttentionCall::add(const Sequence& sequence, int64_t key_blocks) {
  sequences_.push_back(sequence);
  p.query_blocks += ceil_div(sequence.N, sequence.query_rows);
  p.key_blocks += key_blocks;
  pairs_ += sequence.N * sequence.M;
  p.B = static_cast<int64_t>(sequences_.size());
  p.sequences = sequences_.data();
}

void* AttentionCall::keep(Tensor tensor) {
  buffers_.push_back(std::move(tensor));
  return buffers_.back().mutable_data_ptr();
}

void AttentionCall::add_packed(void*& pointer, int64_t elements_per_key) {
  pointer = keep(at::empty({packed_keys_ * p.Hkv * elements_per_key}, options_));
}

void AttentionCall::pack() {
  p.key_finite =
      static_cast<bool*>(keep(at::empty({2, packed_blocks()}, options_.dtype(at::kBool))));
  p.value_finite = p.key_finite + packed_blocks();
  run(attention_pack_kernel, p, packed_blocks(), packed_keys_ * p.Hkv * (p.D + p.Dv), 0);
}

void AttentionCall::want_sink(const Tensor& grad) {
  grad_sink_ = grad;
  grad_sink_wide_ = at::empty({p.Hq}, options_);
  p.grad_sink = grad_sink_wide_.mutable_data_ptr();
}

void AttentionCall::forward() {
  add_packed(p.key_transposed, layout_.key_transposed);
  add_packed(p.value_rows, layout_.value_rows);
  pack();
  run(attention_forward_kernel, p, p.query_blocks * p.Hq, products(), layout_.forward_scratch);
}

void AttentionCall::backward() {
  add_packed(p.key_transposed, layout_.key_transposed);
  add_packed(p.value_transposed, layout_.value_transposed);
  if (p.grad_query.data) add_packed(p.key_rows, layout_.key_rows);
  pack();
  if (p.grad_query.data)
    p.grad_query_parts = keep(at::empty({part_rows_ * p.Hq * layout_.query_part}, options_));
  p.batch_stride = p.B;
  if (p.grad_bias && tasks_own_bias()) add_bias_parts();
  if (p.grad_query.data || p.grad_key.data || p.grad_value.data || p.grad_bias_parts)
    run(attention_backward_kernel, p,
        (p.grad_bias_parts ? p.splits / p.B * p.batch_stride : p.splits) * p.Hkv, products(),
        layout_.backward_scratch);
  if (p.grad_query.data)
    run(attention_reduce_query_kernel, p, p.query_blocks * p.Hq,
        part_rows_ * p.Hq * layout_.query_part, layout_.reduce_query_scratch);
  if (p.grad_sink) {
    run(attention_grad_sink_kernel, p, p.Hq, products() / kKeyBlock, layout_.grad_sink_scratch);
    grad_sink_.copy_(grad_sink_wide_);
  }
  if (p.grad_bias) grad_bias();
}

/// Different tasks of the backward never meet in an element of dbias.
bool AttentionCall::tasks_own_bias() const {
  const bool heads = p.bias_shape[1] == p.Hq || p.Hkv == 1;
  const bool keys = p.bias_shape[3] > 1 || sequences_[0].splits <= 1;
  return heads && keys;
}

void AttentionCall::add_bias_parts() {
  const int64_t repeats = p.B / p.bias_shape[0];
  p.batch_stride = p.bias_shape[0] * std::min(repeats, kMostSplits);
  p.grad_bias_parts =
      keep(at::zeros({p.batch_stride * bias_elements() / p.bias_shape[0]}, options_));
}

int64_t AttentionCall::bias_elements() const {
  return p.bias_shape[0] * p.bias_shape[1] * p.bias_shape[2] * p.bias_shape[3];
}

void AttentionCall::grad_bias() {
  if (p.grad_bias_parts)
    return run(attention_reduce_bias_kernel, p, ceil_div(bias_elements(), kBiasChunk),
               bias_elements() * (p.batch_stride / p.bias_shape[0]), 0);
  const Sequence& s = sequences_[0];
  const int64_t rows = p.bias_shape[2] == 1 ? 1 : ceil_div(s.N, s.query_rows);
  const int64_t columns = p.bias_shape[3] == 1 ? 1 : ceil_div(s.M, kKeyBlock);
  run(attention_grad_bias_kernel, p, p.bias_shape[0] * p.bias_shape[1] * rows * columns, products(),
      layout_.grad_bias_scratch);
}

}  // namespace fulgurite
