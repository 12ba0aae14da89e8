// The lists of an optimizer's step, known between steps: Python would spend more time on handing
// thousands of tensors to the dispatcher than the step takes. The gradients are read from the
// parameters anew each time.
//
// A plan owns nothing that the optimizer has: torch.utils.swap_tensors and Module.to want to be the
// only owners of a parameter, and a state that is dropped must be freed at once. It is valid while
// the optimizer's objects are those that it was made of, which Python (optim/_plan.py) looks at
// before every use.
#include <torch/custom_class.h>

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <unordered_map>
#include <vector>

#include "amp/args.h"
#include "common/kept_table.h"
#include "optim/args.h"

namespace fulgurite {
namespace {

using Tensors = std::vector<Tensor>;
using Ints = std::vector<int64_t>;

/// Tensors that someone else owns: no use count is raised.
class Borrowed {
  using Traits = c10::MaybeOwnedTraits<Tensor>;

 public:
  explicit Borrowed(const Tensors& owned) {
    list_.reserve(owned.size());
    for (const Tensor& tensor : owned) list_.push_back(Traits::createBorrow(tensor));
  }
  Borrowed(Borrowed&&) = default;
  Borrowed& operator=(Borrowed&&) = delete;
  ~Borrowed() {
    for (Tensor& tensor : list_) Traits::destroyBorrow(tensor);
  }

  operator TensorList() const { return list_; }
  size_t size() const { return list_.size(); }
  const Tensor& operator[](size_t i) const { return list_[i]; }

 private:
  Tensors list_;
};

/// −1: a tensor made under inference mode has none.
int64_t version(const Tensor& tensor) {
  return tensor.is_inference()
             ? -1
             : int64_t{tensor.unsafeGetTensorImpl()->version_counter().current_version()};
}

/// Memory and version of a parameter as our step left it. The weak reference keeps the name of the
/// memory from being given to other memory, not the memory.
class Mark {
 public:
  void set(const Tensor& param) {
    if (storage_._unsafe_get_target() != param.storage().unsafeGetStorageImpl())
      storage_ = param.storage().getWeakStorageImpl();
    offset_ = param.storage_offset();
    version_ = version(param);
  }
  /// Nobody has written it since, as far as versions and addresses tell.
  bool holds(const Tensor& param) const {
    return version_ >= 0 && version_ == version(param) &&
           storage_._unsafe_get_target() == param.storage().unsafeGetStorageImpl() &&
           offset_ == param.storage_offset();
  }
  bool expired() const { return storage_.expired(); }

 private:
  c10::weak_intrusive_ptr<c10::StorageImpl> storage_{
      c10::intrusive_ptr<c10::StorageImpl>()};  // of none
  int64_t offset_ = 0, version_ = -1;
};

/// The lists of one call; states are the operator's lists between grads and masters, then those
/// between masters and steps.
struct PlannedCall {
  Borrowed params, masters, steps;
  std::vector<Borrowed> states;
  Ints groups, keys;
  bool decoupled, amsgrad, maximize;
  std::vector<at::ScalarType> dtypes = {};  // of params
  std::vector<size_t> whole = {};           // params that have a whole master, not half of one
  std::vector<Mark> marks = {};             // of these
  Tensors grads = {};                       // owned, from collect() to the end of the step
  Ints versions = {};                       // of grads when they were looked at
  KeptTable table = {};                     // of a device that has one

  const Tensor& marked(size_t k) const { return params[whole[k]]; }
};

struct StepInputs {
  const Tensor& hyper;
  const OptionalTensor &grad_multiplier, &found_inf, &seed;
};

class AdamwPlan : public torch::CustomClassHolder {
 public:
  /// adamw_: states are exp_avgs, exp_avg_sqs, max_exp_avg_sqs, copies, emas.
  void add(const Tensors& params, const std::vector<Tensors>& states, const Tensors& masters,
           const Tensors& steps, Ints groups, Ints keys, bool decoupled, bool amsgrad,
           bool maximize) {
    TORCH_CHECK(states.size() == 5, "expected five lists of states, got ", states.size());
    add_call({Borrowed(params), Borrowed(masters), Borrowed(steps), borrowed(states),
              std::move(groups), std::move(keys), decoupled, amsgrad, maximize});
  }

  /// adamw_8bit_: states are codes and scales of exp_avg, codes and scales of exp_avg_sq.
  void add_8bit(const Tensors& params, const std::vector<Tensors>& states, const Tensors& masters,
                const Tensors& steps, Ints groups, Ints keys, bool decoupled, bool maximize) {
    TORCH_CHECK(states.size() == 4, "expected four lists of states, got ", states.size());
    add_call({Borrowed(params), Borrowed(masters), Borrowed(steps), borrowed(states),
              std::move(groups), std::move(keys), decoupled, false, maximize});
  }

  /// Parameters that had no gradient when the plan was made.
  void add_idle(const Tensors& params) {
    idle_.clear();
    idle_.emplace_back(params);
  }

  /// What an older plan knows of parameters that nobody has written since.
  void take_marks(const c10::intrusive_ptr<AdamwPlan>& older) {
    others_ = std::move(older->others_);
    for (PlannedCall& call : older->calls_)
      for (size_t k = 0; k < call.whole.size(); ++k)
        others_[call.marked(k).unsafeGetTensorImpl()] = std::move(call.marks[k]);
    std::erase_if(others_, [](const auto& entry) { return entry.second.expired(); });
    for (PlannedCall& call : calls_)
      for (size_t k = 0; k < call.whole.size(); ++k)
        if (const auto found = others_.find(call.marked(k).unsafeGetTensorImpl());
            found != others_.end())
          call.marks[k] = found->second;
  }

  /// Reads the gradients; false where a parameter has lost its own or has another dtype, an idle one
  /// has a gradient now, or one is not dense: then the plan is no longer the optimizer's.
  bool collect() {
    std::atomic<bool> holds{true};
    for (PlannedCall& call : calls_) {
      call.grads.resize(call.params.size());
      for_all(call.params.size(), [&](size_t i) {
        const Tensor& param = call.params[i];
        const Tensor& grad = param.grad();
        if (grad.defined() && grad.layout() == at::kStrided &&
            param.scalar_type() == call.dtypes[i])
          call.grads[i] = grad;
        else
          holds.store(false, std::memory_order_relaxed);
      });
    }
    for (const Borrowed& params : idle_)
      for (size_t i = 0; i < params.size(); ++i)
        if (params[i].grad().defined()) holds = false;
    if (!holds) drop_gradients();
    return holds;
  }

  /// Of the collected gradients, in the order of their keys.
  std::tuple<Tensor, Tensor, Tensor> grad_stats(const OptionalTensor& inv_scale) {
    const at::AutoDispatchBelowADInplaceOrView below;
    if (calls_.size() == 1) return call(GradStatsArgs{calls_[0].grads, inv_scale});
    const Tensors all = ordered_gradients();
    return call(GradStatsArgs{all, inv_scale});
  }

  /// Remembers the collected gradients until the step, which can ask whether they are the same.
  void look() {
    for (PlannedCall& call : calls_) {
      call.versions.resize(call.grads.size());
      for_all(call.grads.size(), [&](size_t i) { call.versions[i] = version(call.grads[i]); });
    }
  }

  /// The parameters still have the gradients that were looked at, and nobody has written these.
  bool unchanged() {
    std::atomic<bool> same{true};
    for (const PlannedCall& call : calls_) {
      if (call.grads.size() != call.params.size() || call.versions.size() != call.grads.size())
        return false;
      for_all(call.params.size(), [&](size_t i) {
        const Tensor& grad = call.params[i].grad();
        if (!grad.is_same(call.grads[i]) || call.versions[i] < 0 ||
            call.versions[i] != version(grad))
          same.store(false, std::memory_order_relaxed);
      });
    }
    return same;
  }

  /// Keys of the parameters with a whole master that may have been written since our last step.
  Ints written() {
    Ints keys;
    for (const PlannedCall& call : calls_)
      for (size_t k = 0; k < call.whole.size(); ++k)
        if (!call.marks[k].holds(call.marked(k))) keys.push_back(call.keys[call.whole[k]]);
    return keys;
  }

  /// Updates from the collected gradients, and lets go of them.
  void step(const Tensor& hyper, const OptionalTensor& grad_multiplier,
            const OptionalTensor& found_inf, const OptionalTensor& seed) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "expected gradients to be switched off");
    for (PlannedCall& call : calls_) {
      {
        // Lists of thousands of tensors are boxed by the kernels above, which only raise versions.
        at::AutoDispatchBelowADInplaceOrView below;
        run(call, {hyper, grad_multiplier, found_inf, seed});
      }
      bump_versions(call);
    }
    drop_gradients();
  }

  void drop_gradients() {
    for (PlannedCall& call : calls_) {
      call.grads.clear();
      call.versions.clear();
    }
  }

 private:
  static std::vector<Borrowed> borrowed(const std::vector<Tensors>& lists) {
    return {lists.begin(), lists.end()};
  }

  void add_call(PlannedCall&& call) {
    for (size_t i = 0; i < call.params.size(); ++i)
      call.dtypes.push_back(call.params[i].scalar_type());
    for (size_t i = 0; i < call.masters.size(); ++i)
      if (call.masters[i].numel() != 0 && call.masters[i].scalar_type() == at::kFloat)
        call.whole.push_back(i);
    call.marks.resize(call.whole.size());
    calls_.push_back(std::move(call));
  }

  Tensors ordered_gradients() const {
    std::vector<std::pair<int64_t, const Tensor*>> keyed;
    for (const PlannedCall& call : calls_)
      for (size_t i = 0; i < call.grads.size(); ++i)
        keyed.emplace_back(call.keys[i], &call.grads[i]);
    std::sort(keyed.begin(), keyed.end());
    Tensors all;
    all.reserve(keyed.size());
    for (const auto& [key, grad] : keyed) all.push_back(*grad);
    return all;
  }

  static void run(PlannedCall& call, const StepInputs& in) {
    const LendTable lend(call.table);
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
    const std::vector<Borrowed>& s = call.states;
    if (s.size() == 4)
      fulgurite::call(Adamw8bitArgs{step, s[0], s[1], s[2], s[3]});
    else
      fulgurite::call(AdamwArgs{step, s[0], s[1], s[2], s[3], s[4], call.amsgrad, false});
  }

  static void bump_versions(PlannedCall& call) {
    for_all(call.params.size(), [&](size_t i) {
      const auto bump = [i](TensorList list) {
        if (i < list.size() && !list[i].is_inference())
          list[i].unsafeGetTensorImpl()->bump_version();
      };
      for (const TensorList list : {TensorList(call.params), TensorList(call.grads),
                                    TensorList(call.masters), TensorList(call.steps)})
        bump(list);
      for (const Borrowed& list : call.states) bump(list);
    });
    for_all(call.whole.size(), [&](size_t k) { call.marks[k].set(call.marked(k)); });
  }

  /// visit(i) for every i < n, on all threads: what lies in memory here and there is waited for.
  template <class Visit>
  static void for_all(size_t n, const Visit& visit) {
    at::parallel_for(0, static_cast<int64_t>(n), 256, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) visit(static_cast<size_t>(i));
    });
  }

  std::vector<PlannedCall> calls_;
  std::vector<Borrowed> idle_;
  std::unordered_map<const c10::TensorImpl*, Mark> others_;  // of parameters in no call
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
      .def("take_marks", &AdamwPlan::take_marks)
      .def("collect", &AdamwPlan::collect)
      .def("grad_stats", &AdamwPlan::grad_stats)
      .def("look", &AdamwPlan::look)
      .def("unchanged", &AdamwPlan::unchanged)
      .def("written", &AdamwPlan::written)
      .def("drop_gradients", &AdamwPlan::drop_gradients)
      .def("step", &AdamwPlan::step);
}
