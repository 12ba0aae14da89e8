// Loss scaling on a card, torch side. What the CPU reads, scales and norms, stays on the card here.
#include "amp/check.h"
#include "amp/cuda/problem.h"
#include "amp/grad_list.h"
#include "amp/scale_rule.h"
#include "cuda/call.h"

#include <torch/library.h>

namespace fulgurite::cuda {
namespace {

Kernel amp_grad_stats("amp_grad_stats");
Kernel amp_unscale("amp_unscale");
Kernel amp_clip_multiplier("amp_clip_multiplier");
Kernel amp_update_scale("amp_update_scale");

/// A list with its tables in memory of the card.
class GradTable {
 public:
  GradTable(const Call& call, const GradList& list, const std::vector<int64_t>& first = {}) {
    const WalkList<1>& walks = list.walks();
    CallTable table;
    const auto walk = table.add(walks.walks(), list.count());
    const auto layout = table.add(walks.layouts(), walks.layout_entries());
    const auto grad = table.add(list.tensors(), list.count());
    const auto first_of = table.add(first.data(), first.size());
    memory_ = call.write(table);
    gradients_ = {walk.in(memory_), layout.in(memory_), grad.in(memory_), list.count(), nullptr};
    first_ = first_of.in(memory_);
  }
  Gradients gradients(const float* inv_scale) const {
    Gradients gradients = gradients_;
    gradients.inv_scale = inv_scale;
    return gradients;
  }
  const int64_t* first() const { return first_; }

 private:
  Tensor memory_;
  Gradients gradients_;
  const int64_t* first_;
};

std::tuple<Tensor, Tensor, Tensor> grad_stats_cuda(const GradStatsArgs& args) {
  check_grad_stats(args);
  const auto& [grads, inv_scale] = args;
  const Call call("grad_stats", grads.empty() ? *inv_scale : grads[0]);
  call.refuse_float64("grads", grads);
  const GradList list(grads, WalkOrder::kLogical, GradAccess::kRead);
  const StatsPlan plan = list.stats_plan();
  const GradTable on_card(call, list, plan.first());
  const int64_t slots = plan.slots(), sums = slots + list.count();
  const Tensor sum = call.empty({sums}, at::kDouble), bad = call.empty({sums}, at::kBool);
  const Tensor found_inf = call.empty({}, at::kFloat), norm_sq = call.empty({}, at::kDouble),
               first_bad = call.empty({}, at::kLong);
  auto* const sum_data = sum.mutable_data_ptr<double>();
  auto* const bad_data = bad.mutable_data_ptr<bool>();
  const GradStatsProblem p{on_card.gradients(scalar_or_null(inv_scale)),
                           on_card.first(),
                           slots,
                           sum_data,
                           sum_data + slots,
                           bad_data,
                           bad_data + slots,
                           found_inf.mutable_data_ptr<float>(),
                           norm_sq.mutable_data_ptr<double>(),
                           first_bad.mutable_data_ptr<int64_t>()};
  call.run(amp_grad_stats, slots, run_grad_stats, p);
  return {found_inf, norm_sq, first_bad};
}

Tensor clip_multiplier_cuda(const ClipMultiplierArgs& args) {
  check_clip_multiplier(args);
  const auto& [norm_sq, max_norm, inv_scale, eps] = args;
  const Call call("clip_multiplier", norm_sq);
  const Tensor factor = call.empty({}, at::kFloat);
  const ClipMultiplierProblem p{norm_sq.const_data_ptr<double>(), scalar_or_null(inv_scale),
                                max_norm, eps, factor.mutable_data_ptr<float>()};
  call.run(amp_clip_multiplier, 1, run_clip_multiplier, p);
  return factor;
}

void unscale_cuda(const UnscaleArgs& args) {
  check_unscale(args);
  const auto& [grads, found_inf, inv_scale] = args;
  check_unscale_memory(grads);
  const Call call("unscale_", found_inf);
  call.refuse_float64("grads", grads);
  const GradList list(grads, WalkOrder::kMemory, GradAccess::kWrite);
  const GradTable on_card(call, list);
  const int64_t positions = list.walks().positions();
  const UnscaleProblem p{on_card.gradients(inv_scale.const_data_ptr<float>()), positions,
                         found_inf.mutable_data_ptr<float>()};
  call.run(amp_unscale, ceil_div(positions, kPositionsPerBlock), run_unscale, p);
}

void update_scale_cuda(const UpdateScaleArgs& a) {
  check_update_scale(a);
  const Call call("update_scale_", a.scale);
  const UpdateScaleProblem p{scale_rule(a),
                             a.scale.mutable_data_ptr<float>(),
                             a.growth_tracker.mutable_data_ptr<int32_t>(),
                             a.hysteresis.mutable_data_ptr<int32_t>(),
                             a.counters.mutable_data_ptr<int64_t>(),
                             a.counters.stride(0),
                             a.found_inf.const_data_ptr<float>()};
  call.run(amp_update_scale, 1, run_update_scale, p);
}

}  // namespace
}  // namespace fulgurite::cuda

// CUDA; the tests' libraries say CPU (docs/internals/cuda.md).
TORCH_LIBRARY_IMPL(fulgurite, FULGURITE_CUDA_KEY, m) {
  using namespace fulgurite;
  using namespace fulgurite::cuda;
  implement<grad_stats_cuda>(m);
  implement<clip_multiplier_cuda>(m);
  implement<unscale_cuda>(m);
  implement<update_scale_cuda>(m);
}
