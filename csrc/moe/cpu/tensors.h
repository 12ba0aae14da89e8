// Tensors as the CPU side of the moe family reads them.
#pragma once

#include <ATen/core/Tensor.h>

#include "common/ceil_div.h"
#include "common/check_choice.h"
#include "moe/cpu/kernels/params.h"

namespace fulgurite {

inline Matrix matrix(const at::Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1)};
}

inline TokenMask mask_of(const std::optional<at::Tensor>& mask) {
  if (!mask) return {};
  return {mask->const_data_ptr<bool>(), mask->stride(0)};
}

/// int32 or int64 ids of any strides, read as int64.
class Ids {
 public:
  explicit Ids(const at::Tensor& tensor)
      : data_(tensor.const_data_ptr()),
        wide_(tensor.scalar_type() == at::kLong),
        row_stride_(tensor.dim() > 0 ? tensor.stride(0) : 0),
        column_stride_(tensor.dim() > 1 ? tensor.stride(1) : 0) {}
  int64_t operator()(int64_t row, int64_t column = 0) const {
    const int64_t at = row * row_stride_ + column * column_stride_;
    return wide_ ? static_cast<const int64_t*>(data_)[at] : static_cast<const int32_t*>(data_)[at];
  }

 private:
  const void* data_;
  bool wide_;
  int64_t row_stride_, column_stride_;
};

/// Rows of logits in one task.
inline int64_t rows_per_task(int64_t E) { return E < 16384 ? 16384 / (E < 1 ? 1 : E) : 1; }

/// An exponential and a division for each logit.
inline constexpr int64_t kLogitCost = 16;

}  // namespace fulgurite
