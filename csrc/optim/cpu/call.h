// From the tensors of an AdamW call to what the kernels see.
#pragma once

#include <deque>
#include <vector>

#include "common/walk.h"
#include "optim/args.h"
#include "optim/cpu/params.h"

namespace fulgurite {

/// Entry i of an optional list; null if the list or the entry is empty.
inline const Tensor* entry_or_null(TensorList list, size_t i) {
  return list.empty() || list[i].numel() == 0 ? nullptr : &list[i];
}

/// found_inf says that nothing may change.
bool is_skipped(const StepArgs& a);
/// Raises every count of steps by 1.
void advance(TensorList steps);

/// Walks and descriptors of a call's tensors.
class AdamwCall {
 public:
  using Operands = WalkList<kAdamwOperands>::Operands;

  /// Tensors begin at multiples of `grain` in the space of positions.
  AdamwCall(const StepArgs& a, int64_t grain);

  /// The next tensor. Of its operands only those need to be given that StepArgs does not name.
  void add(Operands operands);

  AdamwParams params(bool zero_grads) const;
  int64_t positions() const { return list_.positions(); }
  int64_t elements() const { return list_.elements(); }

 private:
  const Tensor* row_major(const Tensor& param);
  int32_t scalars_of(size_t i);

  const StepArgs& a_;
  double multiplier_;
  RoundingSeed seed_{};
  WalkList<kAdamwOperands> list_;
  std::vector<AdamwTensor> tensors_;
  std::vector<AdamwScalars> scalars_;
  std::deque<Tensor> row_major_;
};

}  // namespace fulgurite
