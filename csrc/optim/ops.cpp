// Schemas of the optim family, its public C++ functions, and its Meta, Autograd and ADInplaceOrView
// kernels.
#include "common/mutation.h"
#include "fulgurite/optim.h"
#include "optim/check.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(fulgurite, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def(
      "adamw_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] "
      "exp_avg_sqs, Tensor(e!)[] max_exp_avg_sqs, "
      "Tensor(f!)[] masters, Tensor(g!)[] copies, Tensor(h!)[] emas, Tensor(i!)[] steps, Tensor "
      "hyper, int[] groups, *, "
      "Tensor? grad_multiplier=None, Tensor? found_inf=None, Tensor? seed=None, int[]? keys=None, "
      "bool decoupled=True, bool amsgrad=False, "
      "bool maximize=False, bool zero_grads=False) -> ()",
      tags);
  m.def(
      "adamw_8bit_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avg_codes, "
      "Tensor(d!)[] exp_avg_scales, Tensor(e!)[] exp_avg_sq_codes, "
      "Tensor(f!)[] exp_avg_sq_scales, Tensor(g!)[] masters, Tensor(h!)[] steps, Tensor hyper, "
      "int[] groups, *, "
      "Tensor? grad_multiplier=None, Tensor? found_inf=None, Tensor? seed=None, int[]? keys=None, "
      "bool decoupled=True, bool maximize=False) -> ()",
      tags);
  m.def("split_master(Tensor master) -> (Tensor high, Tensor low)", tags);
  m.def("join_master(Tensor high, Tensor low) -> Tensor", tags);
}

namespace fulgurite {
namespace {

void adamw_meta(const AdamwArgs& args) { check_adamw(args); }
void adamw_8bit_meta(const Adamw8bitArgs& args) { check_adamw_8bit(args); }

std::tuple<Tensor, Tensor> split_master_meta(const Tensor& master) {
  check_split_master(master);
  return {at::empty_symint(master.sym_sizes(), master.options().dtype(at::kBFloat16)),
          at::empty_symint(master.sym_sizes(), master.options().dtype(at::kShort))};
}

Tensor join_master_meta(const Tensor& high, const Tensor& low) {
  check_join_master(high, low);
  return at::empty_symint(high.sym_sizes(), high.options().dtype(at::kFloat));
}

at::OptionalIntArrayRef optional_ints(const std::optional<std::vector<int64_t>>& ints) {
  return ints ? at::OptionalIntArrayRef(*ints) : at::OptionalIntArrayRef();
}

}  // namespace

void adamw_(const AdamwTensors& t, const Tensor& hyper, const std::vector<int64_t>& groups,
            const AdamwOptions& o) {
  AdamwArgs{{t.params, t.grads, t.masters, t.steps, hyper, groups, o.grad_multiplier, o.found_inf,
             o.seed, optional_ints(o.keys), o.decoupled, o.maximize},
            t.exp_avgs,
            t.exp_avg_sqs,
            t.max_exp_avg_sqs,
            t.copies,
            t.emas,
            o.amsgrad,
            o.zero_grads}
      .call();
}

void adamw_8bit_(const Adamw8bitTensors& t, const Tensor& hyper, const std::vector<int64_t>& groups,
                 const Adamw8bitOptions& o) {
  Adamw8bitArgs{{t.params, t.grads, t.masters, t.steps, hyper, groups, o.grad_multiplier,
                 o.found_inf, o.seed, optional_ints(o.keys), o.decoupled, o.maximize},
                t.exp_avg_codes,
                t.exp_avg_scales,
                t.exp_avg_sq_codes,
                t.exp_avg_sq_scales}
      .call();
}

std::tuple<Tensor, Tensor> split_master(const Tensor& master) {
  static const auto op = op_handle<std::tuple<Tensor, Tensor>(const Tensor&)>("split_master");
  return op.call(master);
}

Tensor join_master(const Tensor& high, const Tensor& low) {
  static const auto op = op_handle<Tensor(const Tensor&, const Tensor&)>("join_master");
  return op.call(high, low);
}

}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, Meta, m) {
  using namespace fulgurite;
  m.impl("adamw_", adamw_from_schema<adamw_meta>);
  m.impl("adamw_8bit_", adamw_8bit_from_schema<adamw_8bit_meta>);
  m.impl("split_master", split_master_meta);
  m.impl("join_master", join_master_meta);
}

TORCH_LIBRARY_IMPL(fulgurite, Autograd, m) {
  for (const char* name : {"adamw_", "adamw_8bit_"}) m.impl(name, fulgurite::refuses_gradients());
  for (const char* name : {"split_master", "join_master"})
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(fulgurite, ADInplaceOrView, m) {
  for (const char* name : {"adamw_", "adamw_8bit_"}) m.impl(name, fulgurite::bumps_versions());
}
