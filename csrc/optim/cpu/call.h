// From the tensors of an AdamW call to what the kernels see.
#pragma once

#include <ATen/Parallel.h>

#include <atomic>
#include <deque>
#include <vector>

#include "cpu/walk.h"
#include "optim/args.h"
#include "optim/cpu/kernels/params.h"

namespace fulgurite {

/// Entry i of an optional list; null if the list or the entry is empty.
inline const Tensor* entry_or_null(TensorList list, size_t i) {
  return list.empty() || list[i].numel() == 0 ? nullptr : &list[i];
}

/// found_inf says that nothing may change.
bool is_skipped(const StepArgs& a);

/// Walks and descriptors of a call's tensors.
class AdamwCall {
 public:
  using Operands = WalkList<kAdamwOperands>::Operands;

  /// Tensors begin at multiples of `grain` in the space of positions.
  AdamwCall(const StepArgs& a, int64_t grain) : a_(a), list_(WalkOrder::kMemory, grain) {}

  /// All tensors in one pass, on all threads, where each is as nearly every one is: dense in one
  /// order with its operands, of dtypes that are served, on the CPU. Else false: then the checks
  /// must say what is wrong, if anything is. own(i) are the operands that StepArgs does not name,
  /// and whether they are served.
  template <class Own>
  bool add_plain(const Own& own);

  /// Tensors that have passed the checks, in any layout.
  template <class Own>
  void add_checked(const Own& own) {
    reset();
    for (size_t i = 0; i < a_.params.size(); ++i) add(i, own(i));
  }

  AdamwParams params(bool zero_grads) const;
  /// What the kernel's instruction set is chosen by: bfloat16 where some operand is.
  Dtype dtype() const;
  int64_t positions() const { return list_.positions(); }
  int64_t elements() const { return list_.elements(); }
  /// Raises every count of steps by 1.
  void advance_steps() const {
    for (float* step : steps_) ++*step;
  }

  struct Own {
    Operands operands;
    bool served;
  };

 private:
  /// Makes room for all tensors.
  void reset();
  bool plain_scalars() const;
  bool fill_plain(size_t i, const Own& own);
  bool finish_plain();
  void add(size_t i, const Own& own);
  void describe(size_t i, const Operands& operands);
  void complete(size_t i, Operands& operands) const;
  const Tensor* row_major(const Tensor& param);
  int32_t scalars_of(size_t i, float step);

  static constexpr int64_t kPerTask = 256;

  const StepArgs& a_;
  WalkList<kAdamwOperands> list_;
  std::vector<AdamwTensor> tensors_;
  std::vector<int64_t> numels_;
  std::vector<float*> steps_;
  std::vector<AdamwScalars> scalars_;
  std::deque<Tensor> row_major_;
};

template <class OwnOf>
bool AdamwCall::add_plain(const OwnOf& own) {
  if (!plain_scalars()) return false;
  reset();
  std::atomic<bool> plain{true};
  at::parallel_for(0, static_cast<int64_t>(a_.params.size()), kPerTask,
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i)
                       if (!fill_plain(static_cast<size_t>(i), own(static_cast<size_t>(i))))
                         return plain.store(false, std::memory_order_relaxed);
                   });
  return plain && finish_plain();
}

}  // namespace fulgurite
