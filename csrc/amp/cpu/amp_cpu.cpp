// Loss scaling on the CPU, torch side.
#include "amp/check.h"
#include "amp/cpu/kernels/params.h"
#include "amp/plan.h"
#include "amp/rules/scale.h"
#include "common/check_choice.h"
#include "common/dtype.h"
#include "common/walk.h"
#include "cpu/tasks.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <memory>

namespace fulgurite {

FULGURITE_KERNEL(amp_gradients, amp_grad_stats, GradStatsFn);
FULGURITE_KERNEL(amp_gradients, amp_unscale, UnscaleTaskFn);

namespace {

constexpr int64_t kBlocksPerTask = 8;

float scalar(const Tensor& tensor) { return *tensor.const_data_ptr<float>(); }

template <class T>
Tensor scalar_result(T value, at::ScalarType dtype, const Tensor& like) {
  Tensor result = at::empty({}, like.options().dtype(dtype));
  *result.mutable_data_ptr<T>() = value;
  return result;
}

/// The walks of a list and what its kernels are told.
class Gradients {
 public:
  Gradients(TensorList grads, WalkOrder order, double inv_scale)
      : walks_(order), inv_scale_(inv_scale) {
    walks_.reserve(grads.size());
    tensors_.reserve(grads.size());
  }
  void add(const Tensor& grad, void* data) {
    walks_.add({&grad});
    tensors_.push_back({data, kernel_dtype(grad.scalar_type())});
  }
  GradientsProblem problem() const {
    return {walks_.walks(), walks_.layouts(), tensors_.data(), walks_.count(), inv_scale_};
  }
  int64_t positions() const { return walks_.positions(); }
  int64_t elements() const { return walks_.elements(); }

 private:
  WalkList<1> walks_;
  std::vector<GradTensor> tensors_;
  double inv_scale_;
};

StatsPlan stats_plan(TensorList grads) {
  std::vector<int64_t> numels;
  numels.reserve(grads.size());
  for (const Tensor& grad : grads) numels.push_back(grad.numel());
  return StatsPlan(numels);
}

std::tuple<Tensor, Tensor, Tensor> grad_stats_cpu(const GradStatsArgs& args) {
  check_grad_stats(args);
  const auto& [grads, inv_scale] = args;
  Gradients list(grads, WalkOrder::kLogical, inv_scale ? scalar(*inv_scale) : 1.0);
  for (const Tensor& grad : grads) list.add(grad, const_cast<void*>(grad.const_data_ptr()));
  const StatsPlan plan = stats_plan(grads);
  const auto sums = std::make_unique<double[]>(plan.slots());
  const auto bad = std::make_unique<bool[]>(plan.slots());
  const GradStatsParams p{list.problem(), sums.get(), bad.get()};
  const auto stats = amp_grad_stats_kernel.get(Dtype::kFloat32);
  run_tasks(amp_grad_stats_kernel, {ceil_div(plan.slots(), kBlocksPerTask), 4 * list.elements()},
            [&](int64_t task, void*) {
              const int64_t first = task * kBlocksPerTask;
              plan.for_slots(first, std::min(plan.slots(), first + kBlocksPerTask),
                             [&](int64_t tensor, int64_t block, int64_t slot) {
                               stats(p, tensor, block, slot);
                             });
            });
  const StatsPlan::Total total = plan.total(sums.get(), bad.get());
  const Tensor& like = grads.empty() ? *inv_scale : grads[0];
  return {scalar_result<float>(total.first_bad >= 0, at::kFloat, like),
          scalar_result<double>(total.sum, at::kDouble, like),
          scalar_result<int64_t>(total.first_bad, at::kLong, like)};
}

Tensor clip_multiplier_cpu(const ClipMultiplierArgs& args) {
  check_clip_multiplier(args);
  const auto& [norm_sq, max_norm, inv_scale, eps] = args;
  const double norm = std::sqrt(*norm_sq.const_data_ptr<double>());
  const float factor = clip_factor(norm, max_norm, inv_scale ? scalar(*inv_scale) : 1.0, eps);
  return scalar_result<float>(factor, at::kFloat, norm_sq);
}

void unscale_cpu(const UnscaleArgs& args) {
  check_unscale(args);
  const auto& [grads, found_inf, inv_scale] = args;
  check_unscale_memory(grads);
  Gradients list(grads, WalkOrder::kMemory, scalar(inv_scale));
  for (const Tensor& grad : grads) list.add(grad, grad.mutable_data_ptr());
  const GradientsProblem p = list.problem();
  std::atomic<bool> bad{false};
  const auto unscale = amp_unscale_kernel.get(Dtype::kFloat32);
  run_tasks(amp_unscale_kernel,
            {ceil_div(list.positions(), kPositionsPerTask), 4 * list.elements()},
            [&](int64_t task, void*) {
              if (unscale(p, task * kPositionsPerTask, (task + 1) * kPositionsPerTask))
                bad.store(true, std::memory_order_relaxed);
            });
  if (bad) *found_inf.mutable_data_ptr<float>() = 1;
}

void update_scale_cpu(const UpdateScaleArgs& a) {
  check_update_scale(a);
  const ScaleRule rule{a.growth_factor,
                       a.backoff_factor,
                       a.growth_interval,
                       static_cast<int32_t>(a.max_hysteresis),
                       choice_of(kRefills, a.refill),
                       a.min_scale,
                       a.max_scale.value_or(std::numeric_limits<double>::infinity())};
  float& scale = *a.scale.mutable_data_ptr<float>();
  int32_t& tracker = *a.growth_tracker.mutable_data_ptr<int32_t>();
  int32_t& hysteresis = *a.hysteresis.mutable_data_ptr<int32_t>();
  int64_t* const counters = a.counters.mutable_data_ptr<int64_t>();
  const int64_t stride = a.counters.stride(0);
  ScaleState s{scale,
               tracker,
               hysteresis,
               counters[0],
               counters[stride],
               counters[2 * stride],
               counters[3 * stride]};
  update_scale(s, scalar(a.found_inf) == 0, rule);
  scale = s.scale;
  tracker = s.tracker;
  hysteresis = s.hysteresis;
  const int64_t counts[] = {s.clean, s.skipped, s.in_a_row, s.last_skipped};
  for (int64_t i = 0; i < 4; ++i) counters[i * stride] = counts[i];
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, CPU, m) {
  using namespace fulgurite;
  implement<grad_stats_cpu>(m);
  implement<clip_multiplier_cpu>(m);
  implement<unscale_cpu>(m);
  implement<update_scale_cpu>(m);
}
