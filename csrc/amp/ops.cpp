// Schemas of the amp family, its public C++ functions, and its Meta, Autograd, ADInplaceOrView and
// empty-list kernels.
#include "amp/check.h"
#include "common/check.h"
#include "common/define.h"
#include "common/mutation.h"
#include "fulgurite/amp.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(fulgurite, m) {
  for (const char* schema : {
           "grad_stats(Tensor[] grads, *, Tensor? inv_scale=None) -> (Tensor found_inf, Tensor "
           "norm_sq, Tensor first_bad)",
           "clip_multiplier(Tensor norm_sq, float max_norm, *, Tensor? inv_scale=None, float "
           "eps=1e-6) -> Tensor",
           "unscale_(Tensor(a!)[] grads, Tensor(b!) found_inf, Tensor inv_scale) -> ()",
           "update_scale_(Tensor(a!) scale, Tensor(b!) growth_tracker, Tensor(c!) hysteresis, "
           "Tensor(d!) counters, Tensor found_inf, *, float growth_factor=2.0, float "
           "backoff_factor=0.5, int growth_interval=2000, int max_hysteresis=1, str "
           "refill=\"clean\", float min_scale=0.0, float? max_scale=None) -> ()",
       })
    fulgurite::define(m, schema, fulgurite::OnCuda::kKernels);
}

namespace fulgurite {
namespace {

using GradStats = std::tuple<Tensor, Tensor, Tensor>;

GradStats grad_stats_meta(const GradStatsArgs& args) {
  check_grad_stats(args);
  const auto options = (args.grads.empty() ? *args.inv_scale : args.grads[0]).options();
  return {at::empty({}, options.dtype(at::kFloat)), at::empty({}, options.dtype(at::kDouble)),
          at::empty({}, options.dtype(at::kLong))};
}

/// The dispatcher comes here when no tensor names a device (the statistics of nothing, on the CPU)
/// or nothing serves it.
GradStats grad_stats_empty(const GradStatsArgs& args) {
  constexpr const char* op = "grad_stats";
  check_grad_stats(args);
  const auto& [grads, inv_scale] = args;
  FULGURITE_CHECK_SERVED(grads.empty() && !inv_scale, "device ",
                         (grads.empty() ? *inv_scale : grads[0]).device(), " is not supported");
  return {at::full({}, 0, at::kFloat), at::full({}, 0, at::kDouble), at::full({}, -1, at::kLong)};
}

Tensor clip_multiplier_meta(const ClipMultiplierArgs& args) {
  check_clip_multiplier(args);
  return at::empty({}, args.norm_sq.options().dtype(at::kFloat));
}

void unscale_meta(const UnscaleArgs& args) { check_unscale(args); }
void update_scale_meta(const UpdateScaleArgs& args) { check_update_scale(args); }

}  // namespace

GradStats grad_stats(const std::vector<Tensor>& grads, const OptionalTensor& inv_scale) {
  return call(GradStatsArgs{grads, inv_scale});
}

Tensor clip_multiplier(const Tensor& norm_sq, double max_norm, const OptionalTensor& inv_scale,
                       double eps) {
  return call(ClipMultiplierArgs{norm_sq, max_norm, inv_scale, eps});
}

void unscale_(const std::vector<Tensor>& grads, const Tensor& found_inf, const Tensor& inv_scale) {
  call(UnscaleArgs{grads, found_inf, inv_scale});
}

void update_scale_(const Tensor& scale, const Tensor& growth_tracker, const Tensor& hysteresis,
                   const Tensor& counters, const Tensor& found_inf, const ScaleOptions& o) {
  call(UpdateScaleArgs{scale, growth_tracker, hysteresis, counters, found_inf, o.growth_factor,
                       o.backoff_factor, o.growth_interval, o.max_hysteresis, o.refill, o.min_scale,
                       o.max_scale});
}

}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, CompositeExplicitAutograd, m) {
  fulgurite::implement<fulgurite::grad_stats_empty>(m);
}

TORCH_LIBRARY_IMPL(fulgurite, Meta, m) {
  using namespace fulgurite;
  implement<grad_stats_meta>(m);
  implement<clip_multiplier_meta>(m);
  implement<unscale_meta>(m);
  implement<update_scale_meta>(m);
}

TORCH_LIBRARY_IMPL(fulgurite, Autograd, m) {
  for (const char* name : {"grad_stats", "clip_multiplier"})
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  for (const char* name : {"unscale_", "update_scale_"})
    m.impl(name, fulgurite::refuses_gradients());
}

TORCH_LIBRARY_IMPL(fulgurite, ADInplaceOrView, m) {
  for (const char* name : {"unscale_", "update_scale_"}) m.impl(name, fulgurite::bumps_versions());
}
