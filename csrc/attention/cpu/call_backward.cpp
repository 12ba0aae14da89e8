// The backward's order of kernels.
#include "attention/cpu/call.h"
#include "attention/cpu/query_parts.h"
#include "cpu/tasks.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

namespace fulgurite {

FULGURITE_KERNEL(attention_backward, attention_delta, AttentionTaskFn);
FULGURITE_KERNEL(attention_normalise, attention_normalise, AttentionTaskFn);
FULGURITE_KERNEL(attention_normalise, attention_normalise_layout, AttentionLayoutFn);
FULGURITE_KERNEL(attention_backward, attention_backward, AttentionTaskFn);
FULGURITE_KERNEL(attention_backward, attention_reduce_query, AttentionTaskFn);
FULGURITE_KERNEL(attention_backward_bias, attention_grad_bias, AttentionTaskFn);
FULGURITE_KERNEL(attention_backward_bias, attention_reduce_bias, AttentionTaskFn);
FULGURITE_KERNEL(attention_backward_bias, attention_grad_sink, AttentionTaskFn);

void AttentionCall::add_delta() {
  const int64_t blocks = p.query_blocks * p.Hq;
  for (int64_t b = 0; b < p.B; ++b)
    p.query_block_rows = std::max(p.query_block_rows, p.sequences[b].query_rows);
  p.delta = keep(at::empty({blocks * p.query_block_rows}, options_));
  p.query_finite = static_cast<bool*>(keep(at::empty({2, blocks}, options_.dtype(at::kBool))));
  p.grad_out_finite = p.query_finite + blocks;
  int64_t coarse_rows = 0;
  p.coarse_rows = &coarse_rows;
  run_counted(attention_delta_kernel, p, {blocks, blocks * p.query_block_rows * (p.D + p.Dv)});
  if (coarse_rows != 0) normalise();
}

/// Rows whose lse has too few digits left.
void AttentionCall::normalise() {
  const int64_t blocks = p.query_blocks * p.Hq;
  const Tensor statistics = at::empty({2, blocks * p.query_block_rows}, options_);
  p.row_max = keep(statistics[0]);
  p.row_inverse_sum = keep(statistics[1]);
  attention_normalise_layout_kernel.get(p.dtype)(p, &layout_);
  run_counted(attention_normalise_kernel, p,
              {blocks, pairs() * p.Hq * (p.D + 1), layout_.normalise_scratch});
}

void AttentionCall::want_sink(const Tensor& grad) {
  grad_sink_ = grad;
  grad_sink_wide_ = at::empty({p.Hq}, options_);
  p.grad_sink = grad_sink_wide_.mutable_data_ptr();
}

void AttentionCall::backward() {
  add_delta();
  p.batch_stride = p.B;
  p.stores_bias =
      p.grad_bias && bias_elements() == p.B * p.Hq * p.sequences[0].N * p.sequences[0].M;
  if (p.grad_bias && !p.stores_bias && tasks_own_bias()) add_bias_parts();
  p.packs_in_tasks = !p.grad_bias || p.stores_bias || p.grad_bias_parts;
  if (!p.packs_in_tasks) {
    add_packed(p.key_transposed, layout_.key_transposed);
    add_packed(p.value_transposed, layout_.value_transposed);
    if (p.grad_query.data) add_packed(p.key_rows, layout_.key_rows);
    pack();
  }
  if (p.grad_query.data || p.grad_key.data || p.grad_value.data || p.grad_bias_parts ||
      p.stores_bias)
    gradients();
  if (p.grad_sink) {
    run_counted(attention_grad_sink_kernel, p, {p.Hq, products() / kKeyBlock});
    grad_sink_.copy_(grad_sink_wide_);
  }
  if (p.grad_bias && !p.stores_bias) grad_bias();
}

/// The backward's tasks; with dQ, the last task of a key/value head to finish adds up the parts of its heads. Where there are
/// fewer heads than threads that is shared out afterwards.
void AttentionCall::gradients() {
  const int64_t heads = p.batch_stride * p.Hkv,
                tasks = p.grad_bias_parts ? p.key_blocks / p.B * heads : p.key_blocks * p.Hkv;
  p.tiles_done = static_cast<int64_t*>(keep(at::zeros({tasks}, options_.dtype(at::kLong))));
  const TaskSpace space{tasks, products(),
                        std::max(layout_.backward_scratch, layout_.reduce_query_scratch)};
  if (!p.grad_query.data) return run_counted(attention_backward_kernel, p, space);
  const int64_t workers = workers_for(space);
  const bool one_by_one = tasks_at_a_time(space, workers) == 1;
  QueryParts parts(p, layout_.query_part, one_by_one ? workers + 1 : heads, options_);
  const int64_t blocks = p.query_blocks * p.Hq;
  const TaskSpace reduction{blocks, blocks * p.query_block_rows * p.D * kQueryParts,
                            layout_.reduce_query_scratch};
  if (heads < workers) {
    run_counted(attention_backward_kernel, p, space);
    return run_counted(attention_reduce_query_kernel, p, reduction);
  }
  run_with_parts(parts, space);
  attention_reduce_query_kernel.count(blocks, workers);
}

/// Tasks that take and give back their heads' parts.
void AttentionCall::run_with_parts(QueryParts& parts, const TaskSpace& space) {
  AttentionTaskFn* const task_of = attention_backward_kernel.get(p.dtype);
  AttentionTaskFn* const reduce = attention_reduce_query_kernel.get(p.dtype);
  const auto add_parts = [&](int64_t b, int64_t head, void* scratch) {
    const int64_t first = query_block_index(p, b, head * p.group, 0),
                  last = query_block_index(p, b, (head + 1) * p.group, 0);
    for (int64_t block = first; block < last; ++block) reduce(p, block, scratch);
  };
  count_tiles(attention_backward_kernel, p);
  run_tasks(attention_backward_kernel, space, [&](int64_t task, void* scratch) {
    parts.start(task);
    task_of(p, task, scratch);
    if (parts.finish(task))
      parts.close(task, [&](int64_t b, int64_t head) { add_parts(b, head, scratch); });
  });
  std::vector<char> row(static_cast<size_t>(layout_.reduce_query_scratch));
  for (int64_t b = 0; b < p.B; ++b)  // without keys there are no tasks, and dQ is 0
    for (int64_t head = 0; p.sequences[b].M == 0 && head < p.Hkv; ++head)
      add_parts(b, head, row.data());
}

/// Different tasks of the backward never meet in an element of dbias.
bool AttentionCall::tasks_own_bias() const {
  const bool heads = p.bias_shape[1] == p.Hq || p.Hkv == 1;
  const bool keys = p.bias_shape[3] > 1 || p.sequences[0].M <= kKeyBlock;
  return heads && keys;
}

void AttentionCall::add_bias_parts() {
  const int64_t repeats = p.B / p.bias_shape[0];
  p.batch_stride = p.bias_shape[0] * std::min(repeats, kBiasParts);
  p.grad_bias_parts =
      keep(at::zeros({p.batch_stride * bias_elements() / p.bias_shape[0]}, options_));
}

int64_t AttentionCall::bias_elements() const {
  return p.bias_shape[0] * p.bias_shape[1] * p.bias_shape[2] * p.bias_shape[3];
}

void AttentionCall::grad_bias() {
  if (p.grad_bias_parts)
    return run_counted(attention_reduce_bias_kernel, p,
                       {ceil_div(bias_elements(), kBiasChunk),
                        bias_elements() * (p.batch_stride / p.bias_shape[0])});
  const Sequence& s = p.sequences[0];
  const int64_t rows = p.bias_shape[2] == 1 ? 1 : ceil_div(s.N, s.query_rows);
  const int64_t columns = p.bias_shape[3] == 1 ? 1 : key_blocks_of(s);
  run_counted(
      attention_grad_bias_kernel, p,
      {p.bias_shape[0] * p.bias_shape[1] * rows * columns, products(), layout_.grad_bias_scratch});
}

}  // namespace fulgurite
