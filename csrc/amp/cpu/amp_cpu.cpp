// Loss scaling on the CPU, torch side.
#include "amp/check.h"
#include "amp/cpu/kernels/params.h"
#include "amp/rules/choices.h"
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

int64_t stats_blocks(int64_t numel) { return ceil_div(numel, kStatsBlock); }

/// Per tensor: the slot of its first block; one more for the end.
std::vector<int64_t> first_slots(TensorList grads) {
  std::vector<int64_t> slots{0};
  slots.reserve(grads.size() + 1);
  for (const Tensor& grad : grads) slots.push_back(slots.back() + stats_blocks(grad.numel()));
  return slots;
}

std::tuple<Tensor, Tensor, Tensor> grad_stats_cpu(const GradStatsArgs& args) {
  check_grad_stats(args);
  const auto& [grads, inv_scale] = args;
  WalkList<1> list(WalkOrder::kLogical);
  list.reserve(grads.size());
  std::vector<GradTensor> tensors;
  tensors.reserve(grads.size());
  for (const Tensor& grad : grads) {
    list.add({&grad});
    tensors.push_back({const_cast<void*>(grad.const_data_ptr()), kernel_dtype(grad.scalar_type())});
  }
  const std::vector<int64_t> slots = first_slots(grads);
  const int64_t blocks = slots.back();
  const auto sums = std::make_unique<double[]>(blocks);
  const auto bad = std::make_unique<bool[]>(blocks);
  const GradStatsParams p{list.walks(),   list.layouts(),
                          tensors.data(), inv_scale ? scalar(*inv_scale) : 1.0,
                          sums.get(),     bad.get()};
  const auto stats = amp_grad_stats_kernel.get(Dtype::kFloat32);
  run_tasks(amp_grad_stats_kernel, {ceil_div(blocks, kBlocksPerTask), 4 * list.elements()},
            [&](int64_t task, void*) {
              const int64_t first = task * kBlocksPerTask,
                            last = std::min(blocks, first + kBlocksPerTask);
              int64_t tensor =
                  std::upper_bound(slots.begin(), slots.end(), first) - slots.begin() - 1;
              for (int64_t slot = first; slot < last; ++slot) {
                while (slots[tensor + 1] <= slot) ++tensor;
                stats(p, tensor, slot - slots[tensor], slot);
              }
            });

  double norm_sq = 0;
  int64_t first_bad = -1;
  for (size_t t = 0; t < grads.size(); ++t) {
    double sum = 0;
    for (int64_t slot = slots[t]; slot < slots[t + 1]; ++slot) {
      sum += sums[slot];
      if (bad[slot] && first_bad < 0) first_bad = static_cast<int64_t>(t);
    }
    norm_sq += sum;
  }
  const Tensor& like = grads.empty() ? *inv_scale : grads[0];
  return {scalar_result<float>(first_bad >= 0, at::kFloat, like),
          scalar_result<double>(norm_sq, at::kDouble, like),
          scalar_result<int64_t>(first_bad, at::kLong, like)};
}

Tensor clip_multiplier_cpu(const ClipMultiplierArgs& args) {
  check_clip_multiplier(args);
  const auto& [norm_sq, max_norm, inv_scale, eps] = args;
  const double inv = inv_scale ? scalar(*inv_scale) : 1.0;
  const double ratio = max_norm / (std::sqrt(*norm_sq.const_data_ptr<double>()) + eps);
  const double clipped = ratio >= 1 ? 1.0 : ratio;  // a NaN norm stays visible
  return scalar_result<float>(static_cast<float>(inv * clipped), at::kFloat, norm_sq);
}

void unscale_cpu(const UnscaleArgs& args) {
  check_unscale(args);
  const auto& [grads, found_inf, inv_scale] = args;
  check_unscale_memory(grads);
  WalkList<1> list;
  list.reserve(grads.size());
  std::vector<GradTensor> tensors;
  tensors.reserve(grads.size());
  for (const Tensor& grad : grads) {
    list.add({&grad});
    tensors.push_back({grad.mutable_data_ptr(), kernel_dtype(grad.scalar_type())});
  }
  const UnscaleParams p{list.walks(), list.layouts(), tensors.data(), list.count(),
                        scalar(inv_scale)};
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

/// The scale after an update that grows it: never to infinity.
float grown(float scale, const UpdateScaleArgs& a) {
  const double product = static_cast<double>(scale) * a.growth_factor;
  const float next =
      static_cast<float>(a.max_scale && product > *a.max_scale ? *a.max_scale : product);
  return std::isfinite(next) ? next : scale;
}

float backed_off(float scale, const UpdateScaleArgs& a) {
  const float next = static_cast<float>(static_cast<double>(scale) * a.backoff_factor);
  const float floor = static_cast<float>(a.min_scale);
  return next < floor ? floor : next;
}

void update_scale_cpu(const UpdateScaleArgs& a) {
  check_update_scale(a);
  float& scale = *a.scale.mutable_data_ptr<float>();
  int32_t& tracker = *a.growth_tracker.mutable_data_ptr<int32_t>();
  int32_t& hysteresis = *a.hysteresis.mutable_data_ptr<int32_t>();
  int64_t* const counters = a.counters.mutable_data_ptr<int64_t>();
  const int64_t stride = a.counters.stride(0);
  int64_t &clean = counters[0], &skipped = counters[stride], &in_a_row = counters[2 * stride],
          &last_skipped = counters[3 * stride];
  if (scalar(a.found_inf) != 0) {
    tracker = 0;
    if (hysteresis > std::numeric_limits<int32_t>::min()) --hysteresis;
    if (hysteresis <= 0) scale = backed_off(scale, a);
    ++skipped;
    ++in_a_row;
    last_skipped = clean + skipped;
    return;
  }
  const bool grows = tracker + int64_t{1} == a.growth_interval;
  if (grows) scale = grown(scale, a);
  tracker = grows ? 0 : tracker + 1;
  if (grows || choice_of(kRefills, a.refill) == Refill::kClean)
    hysteresis = static_cast<int32_t>(a.max_hysteresis);
  ++clean;
  in_a_row = 0;
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
