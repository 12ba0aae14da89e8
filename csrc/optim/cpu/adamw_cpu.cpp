// AdamW on the CPU, torch side: scalars of the step, tensors to descriptors, one parallel region
// for all of them.
#include "common/dtype.h"
#include "common/tasks.h"
#include "common/walk.h"
#include "optim/check.h"
#include "optim/cpu/params.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>

namespace fulgurite {

FULGURITE_KERNEL(optim_adamw, adamw_update, AdamwTaskFn);
FULGURITE_KERNEL(optim_split_master, split_master, SplitTaskFn);
FULGURITE_KERNEL(optim_split_master, join_master, SplitTaskFn);

namespace {

constexpr int64_t kPositionsPerTask = 16384;

/// x^n by squaring: the same bits everywhere, which the C library's pow does not promise.
double power(double x, int64_t n) {
  double result = 1;
  for (; n > 0; n >>= 1, x *= x)
    if (n & 1) result *= x;
  return result;
}

AdamwScalars step_scalars(const Tensor& hyper, int64_t group, float step, double multiplier,
                          const AdamwArgs& a) {
  const double* const row = hyper.const_data_ptr<double>() + group * hyper.stride(0);
  const auto value = [&](int k) { return row[k * hyper.stride(1)]; };
  const double lr = value(0), beta1 = value(1), beta2 = value(2), weight_decay = value(4);
  const int64_t t = static_cast<int64_t>(step);
  AdamwScalars s;
  s.grad_factor = a.maximize ? -multiplier : multiplier;
  s.decay = a.decoupled ? 1 - lr * weight_decay : 1;
  s.weight_decay = a.decoupled ? 0 : weight_decay;
  s.from_exp_avg = 1 - beta1 < 0.5;
  s.exp_avg_weight = s.from_exp_avg ? 1 - beta1 : -beta1;
  s.exp_avg_sq_weight = 1 - beta2;
  s.beta2 = beta2;
  s.step_size = lr / (1 - power(beta1, t));
  s.correction = std::sqrt(1 - power(beta2, t));
  s.eps = value(3);
  s.ema_weight = 1 - value(5);
  return s;
}

void set_operand(AdamwTensor& tensor, int k, const Tensor* operand) {
  tensor.data[k] = nullptr;
  tensor.dtype[k] = Dtype::kFloat32;
  if (!operand) return;
  // The gradient is written only by zero_grads; taking it mutably would make a copy-on-write tensor
  // copy.
  tensor.data[k] =
      k == kGrad ? const_cast<void*>(operand->const_data_ptr()) : operand->mutable_data_ptr();
  if (operand->scalar_type() != at::kShort) tensor.dtype[k] = kernel_dtype(operand->scalar_type());
}

float next_step(const Tensor& step) { return *step.const_data_ptr<float>() + 1; }

void adamw_cpu(const AdamwArgs& a) {
  check_adamw(a);
  check_adamw_contents(a);
  if (a.found_inf && *a.found_inf->const_data_ptr<float>() > 0) return;
  const double multiplier = a.grad_multiplier ? *a.grad_multiplier->const_data_ptr<float>() : 1.0;

  WalkList<kAdamwOperands> list;
  std::vector<AdamwTensor> tensors(a.params.size());
  list.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (a.zero_grads) a.grads[i].mutable_data_ptr();
    const WalkList<kAdamwOperands>::Operands operands{&a.params[i],
                                                      &a.grads[i],
                                                      &a.exp_avgs[i],
                                                      &a.exp_avg_sqs[i],
                                                      a.amsgrad ? &a.max_exp_avg_sqs[i] : nullptr,
                                                      entry_or_null(a.masters, i),
                                                      entry_or_null(a.copies, i),
                                                      entry_or_null(a.emas, i)};
    for (int k = 0; k < kAdamwOperands; ++k) set_operand(tensors[i], k, operands[k]);
    tensors[i].split = operands[kMaster] && operands[kMaster]->scalar_type() == at::kShort;
    const float step = next_step(a.steps[i]);
    const bool repeats =
        i > 0 && a.groups[i] == a.groups[i - 1] && step == next_step(a.steps[i - 1]);
    tensors[i].scalars =
        repeats ? tensors[i - 1].scalars : step_scalars(a.hyper, a.groups[i], step, multiplier, a);
    list.add(operands);
  }

  const AdamwParams p{list.walks(), list.layouts(), tensors.data(),
                      list.count(), a.amsgrad,      a.zero_grads};
  const auto update = adamw_update_kernel.get();
  run_tasks(adamw_update_kernel,
            {ceil_div(list.positions(), kPositionsPerTask), 16 * list.elements()},
            [&](int64_t task, void*) {
              update(p, task * kPositionsPerTask, (task + 1) * kPositionsPerTask);
            });
  for (const Tensor& step : a.steps) *step.mutable_data_ptr<float>() = next_step(step);
}

constexpr int64_t kSplitPerTask = 65536;

void run_split(KernelInfo& kernel, SplitTaskFn* fn, const SplitParams& p, int64_t n) {
  run_tasks(kernel, {ceil_div(n, kSplitPerTask), 8 * n}, [&](int64_t task, void*) {
    fn(p, task * kSplitPerTask, std::min(n, (task + 1) * kSplitPerTask));
  });
}

std::tuple<Tensor, Tensor> split_master_cpu(const Tensor& master) {
  check_split_master(master);
  const Tensor dense = master.contiguous();
  Tensor high =
      at::empty(master.sizes(),
                master.options().dtype(at::kBFloat16).memory_format(at::MemoryFormat::Contiguous));
  Tensor low =
      at::empty(master.sizes(),
                master.options().dtype(at::kShort).memory_format(at::MemoryFormat::Contiguous));
  run_split(split_master_kernel, split_master_kernel.get(),
            {const_cast<float*>(dense.const_data_ptr<float>()),
             static_cast<uint16_t*>(high.mutable_data_ptr()), low.mutable_data_ptr<int16_t>()},
            dense.numel());
  return {high, low};
}

Tensor join_master_cpu(const Tensor& high, const Tensor& low) {
  check_join_master(high, low);
  const Tensor dense_high = high.contiguous(), dense_low = low.contiguous();
  Tensor master = at::empty(
      high.sizes(), high.options().dtype(at::kFloat).memory_format(at::MemoryFormat::Contiguous));
  run_split(join_master_kernel, join_master_kernel.get(),
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
  m.impl("adamw_", adamw_from_schema<adamw_cpu>);
  m.impl("split_master", split_master_cpu);
  m.impl("join_master", join_master_cpu);
}
