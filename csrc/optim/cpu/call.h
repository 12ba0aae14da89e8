// From the tensors of an AdamW call to what the kernels see.
#pragma once

#include <ATen/Parallel.h>

#include <deque>
#include <vector>

#include "common/walk.h"
#include "optim/cpu/kernels/params.h"
#include "optim/valid.h"

namespace fulgurite {

/// found_inf says that nothing may change.
bool is_skipped(const StepArgs& a);

/// Walks and descriptors of a call's tensors.
class AdamwCall {
 public:
  using Operands = WalkList<kAdamwOperands>::Operands;

  /// Tensors begin at multiples of `grain` in the space of positions. The lists outlive the call.
  AdamwCall(const StepArgs& a, c10::ArrayRef<OperandList> lists, int64_t grain);

  /// Describes all tensors in one pass, on all threads, where each is as nearly every one is: dense
  /// in one order with its operands, of dtypes that are served, on the CPU, and none there twice.
  /// Else false: then the checks must say what is wrong, if anything is.
  bool add_plain();
  /// Numbers for tensors that add_plain has described, once hyper has been checked.
  void number_plain();
  /// Tensors that have passed the checks, in any layout.
  void add_checked();

  AdamwProblem problem(bool zero_grads) const;
  /// What the kernel's instruction set is chosen by: bfloat16 where some operand is.
  Dtype dtype() const;
  int64_t positions() const { return list_.positions(); }
  int64_t elements() const { return list_.elements(); }
  /// Raises every count of steps by 1.
  void advance_steps() const {
    for (float* step : steps_) ++*step;
  }

 private:
  /// Makes room for all tensors.
  void reset();
  bool lengths_hold() const;
  bool describe_plain(size_t i, int64_t groups);
  Operands operands(size_t i) const;
  void describe(size_t i, const Operands& operands);
  const Tensor* row_major(const Tensor& param);
  int32_t scalars_of(size_t i, float step);

  static constexpr int64_t kPerTask = 256;

  const StepArgs& a_;
  c10::ArrayRef<OperandList> lists_;
  std::vector<OperandList> given_;  // those that are not empty
  WalkList<kAdamwOperands> list_;
  std::vector<AdamwTensor> tensors_;
  std::vector<int64_t> numels_;
  std::vector<float*> steps_;
  std::vector<AdamwScalars> scalars_;
  std::deque<Tensor> row_major_;
};

}  // namespace fulgurite
