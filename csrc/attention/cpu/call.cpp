#include "attention/cpu/call.h"

#include "attention/check.h"
#include "common/check_choice.h"
#include "common/dtype.h"
#include "common/offsets.h"
#include "cpu/tasks.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

namespace fulgurite {

FULGURITE_KERNEL(attention_forward, attention_pack, AttentionTaskFn);
FULGURITE_KERNEL(attention_forward, attention_forward, AttentionTaskFn);
FULGURITE_KERNEL(attention_forward, attention_forward_layout, AttentionLayoutFn);
FULGURITE_KERNEL(attention_backward, attention_backward_layout, AttentionLayoutFn);

DropoutRule dropout_rule(const char* op, double dropout_p, const OptionalTensor& philox) {
  if (dropout_p == 0) return DropoutRule{};
  const std::vector<int64_t> words = host_integers(*philox);
  for (size_t i = 2; i < words.size(); ++i)
    FULGURITE_CHECK(words[i] >= 0 && words[i] <= INT32_MAX, "expected ",
                    i == 2 ? "the first batch index" : "the first head",
                    " in philox from 0 to 2^31 - 1, got ", words[i]);
  return make_dropout_rule(dropout_p, words.data(), static_cast<int64_t>(words.size()));
}

void count_tiles(KernelInfo& kernel, AttentionParams& p) {
  TileCount& tiles = *kernel.tiles();
  __atomic_store_n(&tiles.rows, p.B ? p.sequences[0].query_rows : 0, __ATOMIC_RELAXED);
  __atomic_store_n(&tiles.columns, kKeyBlock, __ATOMIC_RELAXED);
  p.tiles_seen = &tiles.seen;
  p.tiles_skipped = &tiles.skipped;
}

void run_counted(Kernel<AttentionTaskFn>& kernel, AttentionParams& p, const TaskSpace& space) {
  count_tiles(kernel, p);
  run_kernel(kernel, p, space);
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

AttentionCall::AttentionCall(const char* op, Pass pass, const Tensor& query, const Tensor& key,
                             const Tensor& value, bool packed, int64_t widest,
                             const ScoreArgs& scores)
    : options_(accumulate_options(query)) {
  const auto strides = packed ? packed_strides : batch_strides;
  p.dtype = kernel_dtype(query.scalar_type());
  p.Hq = query.size(1);
  p.Hkv = key.size(1);
  p.group = p.Hkv ? p.Hq / p.Hkv : 0;
  p.D = query.size(-1);
  p.Dv = value.size(-1);
  p.scale = attention_scale(scores.scale, query);
  p.softcap = scores.softcap;
  p.score = choice_of(kScoreKinds, scores.score);
  p.score_scale = scores.score_scale;
  p.plain_scores = p.score == ScoreKind::kSoftmax && p.scale > 0 && p.softcap == 0 &&
                   !scores.bias && !scores.alibi_slopes;
  p.score_unit = p.plain_scores ? p.scale : 1.0;
  p.rule = score_rule(scores, widest);
  p.bottom_right = choice_of(kAligns, scores.align) == Align::kBottomRight;
  p.dropout = dropout_rule(op, scores.dropout_p, scores.philox);
  p.query = head_rows(query, strides(query));
  p.key = head_rows(key, strides(key));
  p.value = head_rows(value, strides(value));
  if (scores.sink) p.sink = keep(scores.sink->to(options_.dtype()).contiguous());
  if (scores.alibi_slopes) {
    p.alibi_slopes = keep(scores.alibi_slopes->contiguous());
    p.alibi_batch_stride = scores.alibi_slopes->dim() == 2 ? p.Hq : 0;
  }
  attention_forward_layout_kernel.get(p.dtype)(p, &layout_);
  attention_backward_layout_kernel.get(p.dtype)(p, &layout_);
  const int64_t rows = pass == Pass::kForward ? layout_.forward_rows : layout_.backward_rows;
  plan_.emplace(BlockLimits{rows, kKeyBlock, layout_.key_multiple});
}

void* AttentionCall::keep(Tensor tensor) {
  buffers_.push_back(std::move(tensor));
  return buffers_.back().mutable_data_ptr();
}

void AttentionCall::add_packed(void*& pointer, int64_t bytes_per_key) {
  pointer =
      keep(at::empty({plan_->packed_keys() * p.Hkv * bytes_per_key}, options_.dtype(at::kByte)));
}

void AttentionCall::pack() {
  p.key_finite =
      static_cast<bool*>(keep(at::empty({2, packed_blocks()}, options_.dtype(at::kBool))));
  p.value_finite = p.key_finite + packed_blocks();
  run_counted(attention_pack_kernel, p,
              {packed_blocks(), plan_->packed_keys() * p.Hkv * (p.D + p.Dv)});
}

/// Whether one task alone reads a block of keys. Few tasks leave cores idle, which packing before them does not.
bool AttentionCall::forward_packs_in_tasks() const {
  constexpr int64_t kFewTasks = 8;
  return p.group == 1 && p.query_blocks == p.B && p.query_blocks * p.Hq >= kFewTasks;
}

void AttentionCall::forward() {
  p.packs_in_tasks = forward_packs_in_tasks();
  if (!p.packs_in_tasks) {
    add_packed(p.key_transposed, layout_.key_transposed);
    add_packed(p.value_rows, layout_.value_rows);
    pack();
  }
  run_counted(attention_forward_kernel, p,
              {p.query_blocks * p.Hq, products(), layout_.forward_scratch});
}

}  // namespace fulgurite
