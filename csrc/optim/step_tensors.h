// From the tensors of an AdamW call to what the kernels of every device see.
#pragma once

#include <ATen/Parallel.h>

#include <atomic>
#include <deque>
#include <vector>

#include "common/walk.h"
#include "optim/rules/problem.h"
#include "optim/valid.h"

namespace fulgurite {

/// Walks and descriptors of a call's tensors.
class StepTensors {
 public:
  using Operands = WalkList<kAdamwOperands>::Operands;

  /// Tensors are on `device`, and begin at multiples of `grain` in the space of positions. The lists outlive the call.
  StepTensors(const StepArgs& a, c10::ArrayRef<OperandList> lists, int64_t grain,
              c10::DeviceType device);

  /// Describes all tensors in one pass, on all threads, where each is as nearly every one is: dense
  /// in one order with its operands, of dtypes that are served, on the device, and none there twice;
  /// is_step(its count) holds. Else false: then the checks must say what is wrong, if anything is.
  template <class IsStep>
  bool add_plain(const IsStep& is_step) {
    if (!lengths_hold() || a_.hyper.dim() != 2 || a_.hyper.device().type() != device_) return false;
    reset();
    const int64_t groups = a_.hyper.size(0);
    std::atomic<bool> plain{true};
    at::parallel_for(0, static_cast<int64_t>(a_.params.size()), kPerTask,
                     [&](int64_t begin, int64_t end) {
                       for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i)
                         if (!describe_plain(i, groups) || !is_step(steps_[i]))
                           return plain.store(false, std::memory_order_relaxed);
                     });
    return plain && all_different();
  }
  /// Places the tensors that add_plain has described.
  void place_plain();
  /// Tensors that have passed the checks, in any layout.
  void add_checked();

  const WalkList<kAdamwOperands>& list() const { return list_; }
  std::vector<AdamwTensor>& tensors() { return tensors_; }
  const std::vector<AdamwTensor>& tensors() const { return tensors_; }
  /// Their counts of steps.
  const std::vector<float*>& steps() const { return steps_; }

 private:
  /// Makes room for all tensors.
  void reset();
  bool lengths_hold() const;
  bool is_strided(const Tensor& tensor) const {
    return tensor.device().type() == device_ && tensor.layout() == at::kStrided;
  }
  bool describe_plain(size_t i, int64_t groups);
  Operands operands(size_t i) const;
  void describe(size_t i, const Operands& operands);
  bool all_different() const;
  const Tensor* row_major(const Tensor& param);

  static constexpr int64_t kPerTask = 256;

  const StepArgs& a_;
  c10::ArrayRef<OperandList> lists_;
  std::vector<OperandList> given_;  // those that are not empty
  c10::DeviceType device_;
  WalkList<kAdamwOperands> list_;
  std::vector<AdamwTensor> tensors_;
  std::vector<int64_t> numels_;
  std::vector<float*> steps_;
  std::deque<Tensor> row_major_;
};

}  // namespace fulgurite
