// Lists of gradients as kernels are told of them.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "amp/plan.h"
#include "amp/rules/problem.h"
#include "common/dtype.h"
#include "common/walk.h"

namespace fulgurite {

/// What kernels may do with the gradients.
enum class GradAccess { kRead, kWrite };

/// The walks of a list, and where each gradient is.
class GradList {
 public:
  GradList(at::TensorList grads, WalkOrder order, GradAccess access) : walks_(order) {
    walks_.reserve(grads.size());
    tensors_.reserve(grads.size());
    for (const at::Tensor& grad : grads) {
      walks_.add({&grad});
      void* const data = access == GradAccess::kWrite ? grad.mutable_data_ptr()
                                                      : const_cast<void*>(grad.const_data_ptr());
      tensors_.push_back({data, kernel_dtype(grad.scalar_type())});
    }
  }
  const WalkList<1>& walks() const { return walks_; }
  const GradTensor* tensors() const { return tensors_.data(); }
  int64_t count() const { return walks_.count(); }
  StatsPlan stats_plan() const {
    std::vector<int64_t> numels;
    numels.reserve(tensors_.size());
    for (int64_t i = 0; i < count(); ++i) numels.push_back(walks_.walks()[i].numel);
    return StatsPlan(numels);
  }

 private:
  WalkList<1> walks_;
  std::vector<GradTensor> tensors_;
};

}  // namespace fulgurite
