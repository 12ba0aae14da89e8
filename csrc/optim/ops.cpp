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
  m.def("split_master(Tensor master) -> (Tensor high, Tensor low)", tags);
  m.def("join_master(Tensor high, Tensor low) -> Tensor", tags);
}

namespace fulgurite {
namespace {

void adamw_meta(const AdamwArgs& args) { check_adamw(args); }

std::tuple<Tensor, Tensor> split_master_meta(const Tensor& master) {
  check_split_master(master);
  return {at::empty_symint(master.sym_sizes(), master.options().dtype(at::kBFloat16)),
          at::empty_symint(master.sym_sizes(), master.options().dtype(at::kShort))};
}

Tensor join_master_meta(const Tensor& high, const Tensor& low) {
  check_join_master(high, low);
  return at::empty_symint(high.sym_sizes(), high.options().dtype(at::kFloat));
}

}  // namespace

void adamw_(const AdamwTensors& t, const Tensor& hyper, const std::vector<int64_t>& groups,
            const AdamwOptions& o) {
  const at::OptionalIntArrayRef keys =
      o.keys ? at::OptionalIntArrayRef(*o.keys) : at::OptionalIntArrayRef();
  AdamwArgs{t.params,    t.grads,           t.exp_avgs,  t.exp_avg_sqs, t.max_exp_avg_sqs,
            t.masters,   t.copies,          t.emas,      t.steps,       hyper,
            groups,      o.grad_multiplier, o.found_inf, o.seed,        keys,
            o.decoupled, o.amsgrad,         o.maximize,  o.zero_grads}
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
  m.impl("split_master", split_master_meta);
  m.impl("join_master", join_master_meta);
}

TORCH_LIBRARY_IMPL(fulgurite, Autograd, m) {
  m.impl("adamw_", fulgurite::refuses_gradients());
  for (const char* name : {"split_master", "join_master"})
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(fulgurite, ADInplaceOrView, m) { m.impl("adamw_", fulgurite::bumps_versions()); }
