// The lists of an optimizer's step, held between steps: Python would spend more time on handing
// thousands of tensors to the dispatcher than the step takes. The gradients are read from the
// parameters anew each time.
#include <torch/custom_class.h>

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <atomic>
#include <vector>

#include "common/op_handle.h"
#include "optim/args.h"

namespace fulgurite {
namespace {

using Tensors = std::vector<Tensor>;
using Ints = std::vector<int64_t>;

/// The lists of one call; states are the operator's lists between grads and masters, then those
/// between masters and steps.
struct PlannedCall {
  Tensors params, masters, steps;
  std::vector<Tensors> states;
  Ints groups, keys;
  bool decoupled, amsgrad, maximize;
  Tensors grads = {};
};

struct StepInputs {
  const Tensor& hyper;
  const OptionalTensor &grad_multiplier, &found_inf, &seed;
};

class AdamwPlan : public torch::CustomClassHolder {
 public:
  /// adamw_: states are exp_avgs, exp_avg_sqs, max_exp_avg_sqs, copies, emas.
  void add(Tensors params, std::vector<Tensors> states, Tensors masters, Tensors steps, Ints groups,
           Ints keys, bool decoupled, bool amsgrad, bool maximize) {
    TORCH_CHECK(states.size() == 5, "expected five lists of states, got ", states.size());
    calls_.push_back({std::move(params), std::move(masters), std::move(steps), std::move(states),
                      std::move(groups), std::move(keys), decoupled, amsgrad, maximize});
  }

  /// adamw_8bit_: states are codes and scales of exp_avg, codes and scales of exp_avg_sq.
  void add_8bit(Tensors params, std::vector<Tensors> states, Tensors masters, Tensors steps,
                Ints groups, Ints keys, bool decoupled, bool maximize) {
    TORCH_CHECK(states.size() == 4, "expected four lists of states, got ", states.size());
    calls_.push_back({std::move(params), std::move(masters), std::move(steps), std::move(states),
                      std::move(groups), std::move(keys), decoupled, false, maximize});
  }

  /// Parameters that had no gradient when the plan was made.
  void add_idle(Tensors params) { idle_ = std::move(params); }

  /// Reads the gradients; false where a parameter has lost its own, an idle one has one now, or one
  /// is not dense: then the plan is no longer the optimizer's.
  bool collect() {
    std::atomic<bool> holds{true};
    for (PlannedCall& call : calls_) {
      call.grads.resize(call.params.size());
      for_all(call.params, [&](size_t i) {
        const Tensor& grad = call.params[i].grad();
        if (grad.defined() && grad.layout() == at::kStrided)
          call.grads[i] = grad;
        else
          holds.store(false, std::memory_order_relaxed);
      });
    }
    for (const Tensor& param : idle_)
      if (param.grad().defined()) holds = false;
    if (!holds) drop_gradients();
    return holds;
  }

  /// Of the collected gradients, call after call.
  std::tuple<Tensor, Tensor, Tensor> grad_stats(const OptionalTensor& inv_scale) {
    static const auto op =
        op_handle<std::tuple<Tensor, Tensor, Tensor>(TensorList, const OptionalTensor&)>(
            "grad_stats");
    const at::AutoDispatchBelowADInplaceOrView below;
    if (calls_.size() == 1) return op.call(calls_[0].grads, inv_scale);
    Tensors all;
    for (const PlannedCall& call : calls_)
      all.insert(all.end(), call.grads.begin(), call.grads.end());
    return op.call(all, inv_scale);
  }

  /// Updates from the collected gradients, and lets go of them.
  void step(const Tensor& hyper, const OptionalTensor& grad_multiplier,
            const OptionalTensor& found_inf, const OptionalTensor& seed) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "expected gradients to be switched off");
    for (const PlannedCall& call : calls_) {
      {
        // Lists of thousands of tensors are boxed by the kernels above, which only raise versions.
        at::AutoDispatchBelowADInplaceOrView below;
        run(call, {hyper, grad_multiplier, found_inf, seed});
      }
      bump_versions(call);
    }
    drop_gradients();
  }

 private:
  static void run(const PlannedCall& call, const StepInputs& in) {
    const StepArgs step{call.params,
                        call.grads,
                        call.masters,
                        call.steps,
                        in.hyper,
                        call.groups,
                        in.grad_multiplier,
                        in.found_inf,
                        in.seed,
                        in.seed ? at::OptionalIntArrayRef(call.keys) : at::OptionalIntArrayRef(),
                        call.decoupled,
                        call.maximize};
    const std::vector<Tensors>& s = call.states;
    if (s.size() == 4)
      Adamw8bitArgs{step, s[0], s[1], s[2], s[3]}.call();
    else
      AdamwArgs{step, s[0], s[1], s[2], s[3], s[4], call.amsgrad, false}.call();
  }

  static void bump_versions(const PlannedCall& call) {
    for_all(call.params, [&](size_t i) {
      const auto bump = [i](const Tensors& list) {
        if (i < list.size() && !list[i].is_inference())
          list[i].unsafeGetTensorImpl()->bump_version();
      };
      for (const Tensors* list : {&call.params, &call.grads, &call.masters, &call.steps})
        bump(*list);
      for (const Tensors& list : call.states) bump(list);
    });
  }

  /// visit(i) for every entry, on all threads: what lies in memory here and there is waited for.
  template <class Visit>
  static void for_all(const Tensors& list, const Visit& visit) {
    at::parallel_for(0, static_cast<int64_t>(list.size()), 256, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) visit(static_cast<size_t>(i));
    });
  }

  void drop_gradients() {
    for (PlannedCall& call : calls_) call.grads.clear();
  }

  std::vector<PlannedCall> calls_;
  Tensors idle_;
};

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_FRAGMENT(fulgurite, m) {
  using fulgurite::AdamwPlan;
  m.class_<AdamwPlan>("AdamwPlan")
      .def(torch::init<>())
      .def("add", &AdamwPlan::add)
      .def("add_8bit", &AdamwPlan::add_8bit)
      .def("add_idle", &AdamwPlan::add_idle)
      .def("collect", &AdamwPlan::collect)
      .def("grad_stats", &AdamwPlan::grad_stats)
      .def("step", &AdamwPlan::step);
}
