// An AdamW call as the CPU's kernels see it: its tensors, and the numbers of the step, read from memory.
#pragma once

#include "optim/cpu/kernels/params.h"
#include "optim/step_tensors.h"

namespace fulgurite {

/// found_inf says that nothing may change.
bool is_skipped(const StepArgs& a);

class AdamwCall {
 public:
  AdamwCall(const StepArgs& a, c10::ArrayRef<OperandList> lists, int64_t grain)
      : a_(a), all_(a, lists, grain, c10::DeviceType::CPU) {}

  /// As StepTensors has it.
  bool add_plain() {
    return all_.add_plain([](const float* step) { return is_count(*step); });
  }
  /// Numbers for tensors that add_plain has described, once hyper has been checked.
  void number_plain() {
    all_.place_plain();
    number();
  }
  void add_checked() {
    all_.add_checked();
    number();
  }

  AdamwProblem problem(bool zero_grads) const;
  /// What the kernel's instruction set is chosen by: bfloat16 where some operand is.
  Dtype dtype() const;
  int64_t positions() const { return all_.list().positions(); }
  int64_t elements() const { return all_.list().elements(); }
  /// Raises every count of steps by 1.
  void advance_steps() const {
    for (float* step : all_.steps()) ++*step;
  }

 private:
  void number();

  const StepArgs& a_;
  StepTensors all_;
  std::vector<AdamwScalars> scalars_;
};

}  // namespace fulgurite
