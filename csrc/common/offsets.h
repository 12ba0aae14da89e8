// Offsets of packed sequences: int32 or int64 (sequences + 1), rising from 0 to at most the number of positions.
#pragma once

#include <vector>

#include "common/check.h"

namespace fulgurite {

inline void check_offsets_type(const char* op, const char* name, const at::Tensor& offsets) {
  FULGURITE_CHECK_TYPE(offsets.scalar_type() == at::kInt || offsets.scalar_type() == at::kLong,
                       "expected ", name, " of dtype int32 or int64, got ", offsets.scalar_type());
}

/// The contents of a tensor on the host.
inline std::vector<int64_t> host_integers(const at::Tensor& tensor) {
  const at::Tensor wide = tensor.to(at::kLong).contiguous();
  const auto* const data = wide.const_data_ptr<int64_t>();
  return {data, data + wide.numel()};
}

/// Offsets of checked type and shape.
inline std::vector<int64_t> read_offsets(const char* op, const char* name, const at::Tensor& tensor,
                                         int64_t positions) {
  std::vector<int64_t> offsets = host_integers(tensor);
  FULGURITE_CHECK(offsets[0] == 0, "expected ", name, " to start at 0, got ", offsets[0]);
  for (size_t i = 1; i < offsets.size(); ++i)
    FULGURITE_CHECK(offsets[i - 1] <= offsets[i] && offsets[i] <= positions, "expected ", name,
                    " to rise to at most ", positions, ", got ", offsets[i], " after ",
                    offsets[i - 1]);
  return offsets;
}

}  // namespace fulgurite
