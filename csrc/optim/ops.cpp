// Schemas of the optim family, its public C++ functions, and its Meta, Autograd and ADInplaceOrView
// kernels.
#include "common/define.h"
#include "common/mutation.h"
#include "fulgurite/optim.h"
#include "optim/check.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(fulgurite, m) {
  for (const char* schema : {
           "adamw_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] "
           "exp_avg_sqs, Tensor(e!)[] max_exp_avg_sqs, "
           "Tensor(f!)[] masters, Tensor(g!)[] copies, Tensor(h!)[] emas, Tensor(i!)[] steps, "
           "Tensor hyper, int[] groups, *, "
           "Tensor? grad_multiplier=None, Tensor? found_inf=None, Tensor? seed=None, int[]? "
           "keys=None, bool decoupled=True, bool amsgrad=False, "
           "bool maximize=False, bool zero_grads=False) -> ()",
           "adamw_8bit_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avg_codes, "
           "Tensor(d!)[] exp_avg_scales, Tensor(e!)[] exp_avg_sq_codes, "
           "Tensor(f!)[] exp_avg_sq_scales, Tensor(g!)[] masters, Tensor(h!)[] steps, Tensor "
           "hyper, int[] groups, *, "
           "Tensor? grad_multiplier=None, Tensor? found_inf=None, Tensor? seed=None, int[]? "
           "keys=None, bool decoupled=True, bool maximize=False) -> ()",
           "split_master(Tensor master) -> (Tensor high, Tensor low)",
           "join_master(Tensor high, Tensor low) -> Tensor",
       })
    fulgurite::define(m, schema, fulgurite::OnCuda::kKernels);
}

namespace fulgurite {
namespace {

void adamw_meta(const AdamwArgs& args) { check_adamw(args); }
void adamw_8bit_meta(const Adamw8bitArgs& args) { check_adamw_8bit(args); }

std::tuple<Tensor, Tensor> split_master_meta(const SplitMasterArgs& args) {
  check_split_master(args);
  const Tensor& master = args.master;
  return {at::empty_symint(master.sym_sizes(), master.options().dtype(at::kBFloat16)),
          at::empty_symint(master.sym_sizes(), master.options().dtype(at::kShort))};
}

Tensor join_master_meta(const JoinMasterArgs& args) {
  check_join_master(args);
  return at::empty_symint(args.high.sym_sizes(), args.high.options().dtype(at::kFloat));
}

at::OptionalIntArrayRef optional_ints(const std::optional<std::vector<int64_t>>& ints) {
  return ints ? at::OptionalIntArrayRef(*ints) : at::OptionalIntArrayRef();
}

}  // namespace

void adamw_(const AdamwTensors& t, const Tensor& hyper, const std::vector<int64_t>& groups,
            const AdamwOptions& o) {
  call(arguments_of<AdamwArgs>(t.params, t.grads, t.exp_avgs, t.exp_avg_sqs, t.max_exp_avg_sqs,
                               t.masters, t.copies, t.emas, t.steps, hyper, groups,
                               o.grad_multiplier, o.found_inf, o.seed, optional_ints(o.keys),
                               o.decoupled, o.amsgrad, o.maximize, o.zero_grads));
}

void adamw_8bit_(const Adamw8bitTensors& t, const Tensor& hyper, const std::vector<int64_t>& groups,
                 const Adamw8bitOptions& o) {
  call(arguments_of<Adamw8bitArgs>(t.params, t.grads, t.exp_avg_codes, t.exp_avg_scales,
                                   t.exp_avg_sq_codes, t.exp_avg_sq_scales, t.masters, t.steps,
                                   hyper, groups, o.grad_multiplier, o.found_inf, o.seed,
                                   optional_ints(o.keys), o.decoupled, o.maximize));
}

std::tuple<Tensor, Tensor> split_master(const Tensor& master) {
  return call(SplitMasterArgs{master});
}

Tensor join_master(const Tensor& high, const Tensor& low) {
  return call(JoinMasterArgs{high, low});
}

}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, Meta, m) {
  using namespace fulgurite;
  implement<adamw_meta>(m);
  implement<adamw_8bit_meta>(m);
  implement<split_master_meta>(m);
  implement<join_master_meta>(m);
}

TORCH_LIBRARY_IMPL(fulgurite, Autograd, m) {
  for (const char* name : {"adamw_", "adamw_8bit_"}) m.impl(name, fulgurite::refuses_gradients());
  for (const char* name : {"split_master", "join_master"})
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(fulgurite, ADInplaceOrView, m) {
  for (const char* name : {"adamw_", "adamw_8bit_"}) m.impl(name, fulgurite::bumps_versions());
}
