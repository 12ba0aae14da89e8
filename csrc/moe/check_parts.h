// Checks that the operators of the moe family share.
#pragma once

#include "common/check.h"
#include "moe/args.h"

namespace fulgurite {

inline void check_ids_dtype(const char* op, const char* name, const Tensor& ids) {
  FULGURITE_CHECK_TYPE(ids.scalar_type() == at::kInt || ids.scalar_type() == at::kLong, "expected ",
                       name, " of dtype int32 or int64, got ", ids.scalar_type());
}

/// Routing weights: float32, float64 or the dtype of what they weigh.
inline void check_weights_dtype(const char* op, const Tensor& weights, const char* as,
                                const Tensor& other) {
  const at::ScalarType dtype = weights.scalar_type();
  FULGURITE_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble || dtype == other.scalar_type(),
                       "expected weights of dtype float32, float64 or ", as, "'s ",
                       other.scalar_type(), ", got ", dtype);
}

/// A tensor of a known shape, on the device of the first one.
inline void check_shape(const char* op, const char* name, const Tensor& tensor,
                        c10::SymIntArrayRef shape, const Tensor& first) {
  check_sizes(op, name, tensor, shape);
  check_place(op, name, tensor, first);
}

/// Sorted positions are int32.
inline void check_assignments(const char* op, const c10::SymInt& T, const c10::SymInt& K) {
  FULGURITE_CHECK(holds((T * K).sym_lt(int64_t{1} << 31)),
                  "expected fewer than 2^31 assignments, got ", T, " tokens with ", K, " each");
}

}  // namespace fulgurite
