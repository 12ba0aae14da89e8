// AdamW on a card, torch side: what is known before a step goes into a table of the card's memory, and a step is two launches.
#include "common/kept_table.h"
#include "cuda/call.h"
#include "optim/check.h"
#include "optim/cuda/table.h"
#include "optim/step_tensors.h"

#include <torch/library.h>

namespace fulgurite::cuda {
namespace {

Kernel optim_adamw("optim_adamw");
Kernel optim_adamw_8bit("optim_adamw_8bit");
Kernel optim_split_master("optim_split_master");

TableImage image_of(const StepArgs& a, const StepTensors& all,
                    const std::vector<BlockScales>& scales = {}, const DynamicMap* maps = nullptr) {
  std::vector<void*> grads;
  std::vector<AdamwEntry> entries;
  grads.reserve(all.tensors().size());
  entries.reserve(all.tensors().size());
  for (size_t i = 0; i < all.tensors().size(); ++i) {
    grads.push_back(all.tensors()[i].data[kGrad]);
    entries.push_back(entry_of(all.tensors()[i], all.list().walks()[i],
                               static_cast<int32_t>(a.groups[i]), all.steps()[i],
                               scales.empty() ? BlockScales{} : scales[i]));
  }
  const int64_t* const layouts = all.list().layouts();
  return TableImage(grads, entries, {layouts, layouts + all.list().layout_entries()}, maps);
}

using UpdateLauncher = cux::Error(const AdamwUpdateProblem&, cux::Stream);

/// Both launches.
void step(const Call& call, Kernel& kernel, UpdateLauncher* update, const StepArgs& a,
          const TableImage& image, bool zero_grads) {
  const Tensor memory = call.write(image.bytes(), lent_table);
  const AdamwTable table = image.at(memory.const_data_ptr<uint8_t>());
  constexpr int64_t kBytes = sizeof(StepNumbers<float>);
  const Tensor room = call.empty({table.count * kBytes}, at::kByte);
  auto* const numbers = static_cast<StepNumbers<float>*>(room.mutable_data_ptr());
  const float* const found_inf = scalar_or_null(a.found_inf);
  call.run(kernel, 0, run_adamw_count,
           AdamwCountProblem{table,
                             numbers,
                             a.hyper.const_data_ptr<double>(),
                             {a.hyper.stride(0), a.hyper.stride(1)},
                             scalar_or_null(a.grad_multiplier),
                             found_inf,
                             a.decoupled,
                             a.maximize});
  call.run(kernel, table.units, update,
           AdamwUpdateProblem{table, numbers, found_inf,
                              a.seed ? a.seed->const_data_ptr<int64_t>() : nullptr,
                              a.seed ? a.seed->stride(0) : 0, zero_grads});
}

void adamw_cuda(const AdamwArgs& a) {
  const auto lists = operand_lists(a);
  StepTensors all(a, lists, kBlock, a.hyper.device().type());
  const bool plain = all.add_plain([](const float*) { return true; });
  if (plain) {
    check_adamw_single(a);
  } else {
    check_adamw(a);
    check_adamw_memory(a);
  }
  const Call call("adamw_", a.hyper);
  call.refuse_float64("params", a.params);
  plain ? all.place_plain() : all.add_checked();
  if (a.zero_grads)
    for (const Tensor& grad : a.grads) grad.mutable_data_ptr();
  step(call, optim_adamw, run_adamw_update, a, image_of(a, all), a.zero_grads);
}

void adamw_8bit_cuda(const Adamw8bitArgs& a) {
  static const DynamicMap maps[] = {make_dynamic_map(true), make_dynamic_map(false)};
  check_adamw_8bit(a);
  check_adamw_8bit_memory(a);
  const Call call("adamw_8bit_", a.hyper);
  call.refuse_float64("params", a.params);
  const auto lists = operand_lists(a);
  StepTensors all(a, lists, kBlock, a.hyper.device().type());
  all.add_checked();
  std::vector<BlockScales> scales;
  scales.reserve(a.params.size());
  for (size_t i = 0; i < a.params.size(); ++i) {
    const Tensor &m = a.exp_avg_scales[i], &v = a.exp_avg_sq_scales[i];
    scales.push_back(
        {m.mutable_data_ptr<float>(), v.mutable_data_ptr<float>(), m.stride(0), v.stride(0)});
  }
  step(call, optim_adamw_8bit, run_adamw_8bit_update, a, image_of(a, all, scales, maps), false);
}

std::tuple<Tensor, Tensor> split_master_cuda(const SplitMasterArgs& args) {
  check_split_master(args);
  const Call call("split_master", args.master);
  const Tensor dense = args.master.contiguous();
  const Tensor high = call.empty(dense.sizes(), at::kBFloat16),
               low = call.empty(dense.sizes(), at::kShort);
  const SplitMasterProblem p{
      {const_cast<float*>(dense.const_data_ptr<float>()),
       static_cast<uint16_t*>(high.mutable_data_ptr()), low.mutable_data_ptr<int16_t>()},
      dense.numel()};
  call.run(optim_split_master, dense.numel(), run_split_master, p);
  return {high, low};
}

Tensor join_master_cuda(const JoinMasterArgs& args) {
  check_join_master(args);
  const Call call("join_master", args.high);
  const Tensor high = args.high.contiguous(), low = args.low.contiguous();
  const Tensor master = call.empty(high.sizes(), at::kFloat);
  const SplitMasterProblem p{{master.mutable_data_ptr<float>(),
                              static_cast<uint16_t*>(const_cast<void*>(high.const_data_ptr())),
                              const_cast<int16_t*>(low.const_data_ptr<int16_t>())},
                             master.numel()};
  call.run(optim_split_master, master.numel(), run_join_master, p);
  return master;
}

}  // namespace
}  // namespace fulgurite::cuda

TORCH_LIBRARY_IMPL(fulgurite, FULGURITE_CUDA_KEY, m) {
  using namespace fulgurite;
  using namespace fulgurite::cuda;
  implement<adamw_cuda>(m);
  implement<adamw_8bit_cuda>(m);
  implement<split_master_cuda>(m);
  implement<join_master_cuda>(m);
}
