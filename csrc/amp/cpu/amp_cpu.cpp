// Loss scaling on the CPU, torch side.
#include "amp/check.h"
#include "amp/cpu/kernels/params.h"
#include "amp/grad_list.h"
#include "amp/scale_rule.h"
#include "cpu/tasks.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>
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

GradientsProblem problem_of(const GradList& list, double inv_scale) {
  return {list.walks().walks(), list.walks().layouts(), list.tensors(), list.count(), inv_scale};
}

std::tuple<Tensor, Tensor, Tensor> grad_stats_cpu(const GradStatsArgs& args) {
  check_grad_stats(args);
  const auto& [grads, inv_scale] = args;
  const GradList list(grads, WalkOrder::kLogical, GradAccess::kRead);
  const StatsPlan plan = list.stats_plan();
  const auto sums = std::make_unique<double[]>(plan.slots());
  const auto bad = std::make_unique<bool[]>(plan.slots());
  const GradStatsParams p{problem_of(list, inv_scale ? scalar(*inv_scale) : 1.0), sums.get(),
                          bad.get()};
  const auto stats = amp_grad_stats_kernel.get(Dtype::kFloat32);
  run_tasks(
      amp_grad_stats_kernel, {ceil_div(plan.slots(), kBlocksPerTask), 4 * list.walks().elements()},
      [&](int64_t task, void*) {
        const int64_t first = task * kBlocksPerTask;
        plan.for_slots(
            first, std::min(plan.slots(), first + kBlocksPerTask),
            [&](int64_t tensor, int64_t block, int64_t slot) { stats(p, tensor, block, slot); });
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
  const GradList list(grads, WalkOrder::kMemory, GradAccess::kWrite);
  const GradientsProblem p = problem_of(list, scalar(inv_scale));
  std::atomic<bool> bad{false};
  const auto unscale = amp_unscale_kernel.get(Dtype::kFloat32);
  run_tasks(amp_unscale_kernel,
            {ceil_div(list.walks().positions(), kPositionsPerTask), 4 * list.walks().elements()},
            [&](int64_t task, void*) {
              if (unscale(p, task * kPositionsPerTask, (task + 1) * kPositionsPerTask))
                bad.store(true, std::memory_order_relaxed);
            });
  if (bad) *found_inf.mutable_data_ptr<float>() = 1;
}

void update_scale_cpu(const UpdateScaleArgs& a) {
  check_update_scale(a);
  const ScaleRule rule = scale_rule(a);
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
