// AdamW on the CPU, torch side: all tensors in one parallel region.
#include "cpu/tasks.h"
#include "optim/check.h"
#include "optim/cpu/call.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace fulgurite {

FULGURITE_KERNEL(optim_adamw, adamw_update, AdamwTaskFn);
FULGURITE_KERNEL(optim_adamw_8bit, adamw_8bit_update, Adamw8bitTaskFn);
FULGURITE_KERNEL(optim_split_master, split_master, SplitTaskFn);
FULGURITE_KERNEL(optim_split_master, join_master, SplitTaskFn);

namespace {

static_assert(kPositionsPerTask % kBlock == 0, "a task begins at the edge of a block");

void adamw_cpu(const AdamwArgs& a) {
  const auto lists = operand_lists(a);
  AdamwCall call(a, lists, kWalkGrain);
  if (call.add_plain()) {
    check_adamw_single(a);
    check_adamw_hyper(a);
    call.number_plain();
  } else {
    check_adamw(a);
    check_adamw_contents(a);
    call.add_checked();
  }
  if (is_skipped(a)) return;
  if (a.zero_grads)
    for (const Tensor& grad : a.grads) grad.mutable_data_ptr();
  const AdamwProblem p = call.problem(a.zero_grads);
  const auto update = adamw_update_kernel.get(call.dtype());
  run_tasks(adamw_update_kernel,
            {ceil_div(call.positions(), kPositionsPerTask), 16 * call.elements()},
            [&](int64_t task, void*) {
              update(p, task * kPositionsPerTask, (task + 1) * kPositionsPerTask);
            });
  call.advance_steps();
}

void adamw_8bit_cpu(const Adamw8bitArgs& a) {
  static const DynamicMap signed_map = make_dynamic_map(true),
                          unsigned_map = make_dynamic_map(false);
  check_adamw_8bit(a);
  check_adamw_8bit_contents(a);
  if (is_skipped(a)) return;
  const auto lists = operand_lists(a);
  AdamwCall call(a, lists, kBlock);
  std::vector<BlockScales> scales;
  scales.reserve(a.params.size());
  for (size_t i = 0; i < a.params.size(); ++i) {
    const Tensor &m = a.exp_avg_scales[i], &v = a.exp_avg_sq_scales[i];
    scales.push_back(
        {m.mutable_data_ptr<float>(), v.mutable_data_ptr<float>(), m.stride(0), v.stride(0)});
  }
  call.add_checked();
  const Adamw8bitProblem p{call.problem(false), scales.data(), &signed_map, &unsigned_map};
  const auto update = adamw_8bit_update_kernel.get(call.dtype());
  run_tasks(adamw_8bit_update_kernel,
            {ceil_div(call.positions(), kPositionsPerTask), 32 * call.elements()},
            [&](int64_t task, void*) {
              update(p, task * kPositionsPerTask, (task + 1) * kPositionsPerTask);
            });
  call.advance_steps();
}

constexpr int64_t kSplitPerTask = 65536;

void run_split(Kernel<SplitTaskFn>& kernel, const SplitProblem& p, int64_t n) {
  SplitTaskFn* const fn = kernel.get(Dtype::kFloat32);
  run_tasks(kernel, {ceil_div(n, kSplitPerTask), 8 * n}, [&](int64_t task, void*) {
    fn(p, task * kSplitPerTask, std::min(n, (task + 1) * kSplitPerTask));
  });
}

std::tuple<Tensor, Tensor> split_master_cpu(const SplitMasterArgs& args) {
  check_split_master(args);
  const Tensor& master = args.master;
  const Tensor dense = master.contiguous();
  Tensor high =
      at::empty(master.sizes(),
                master.options().dtype(at::kBFloat16).memory_format(at::MemoryFormat::Contiguous));
  Tensor low =
      at::empty(master.sizes(),
                master.options().dtype(at::kShort).memory_format(at::MemoryFormat::Contiguous));
  run_split(split_master_kernel,
            {const_cast<float*>(dense.const_data_ptr<float>()),
             static_cast<uint16_t*>(high.mutable_data_ptr()), low.mutable_data_ptr<int16_t>()},
            dense.numel());
  return {high, low};
}

Tensor join_master_cpu(const JoinMasterArgs& args) {
  check_join_master(args);
  const auto& [high, low] = args;
  const Tensor dense_high = high.contiguous(), dense_low = low.contiguous();
  Tensor master = at::empty(
      high.sizes(), high.options().dtype(at::kFloat).memory_format(at::MemoryFormat::Contiguous));
  run_split(join_master_kernel,
            {master.mutable_data_ptr<float>(),
             static_cast<uint16_t*>(const_cast<void*>(dense_high.const_data_ptr())),
             const_cast<int16_t*>(dense_low.const_data_ptr<int16_t>())},
            master.numel());
  return master;
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, CPU, m) {
  using namespace fulgurite;
  implement<adamw_cpu>(m);
  implement<adamw_8bit_cpu>(m);
  implement<split_master_cpu>(m);
  implement<join_master_cpu>(m);
}
