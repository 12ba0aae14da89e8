// One clear error: "fulgurite::attention: expected key of shape [B, Hkv, M, 64], got [2, 3, 10, 32]".
// The macros expect a `const char* op`, the operator's name, in scope. Order: type, shape, value, support.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymBool.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <optional>

#define FULGURITE_CHECK_TYPE(cond, ...) TORCH_CHECK_TYPE(cond, "fulgurite::", op, ": ", __VA_ARGS__)
#define FULGURITE_CHECK(cond, ...) TORCH_CHECK(cond, "fulgurite::", op, ": ", __VA_ARGS__)
#define FULGURITE_CHECK_VALUE(cond, ...) \
  TORCH_CHECK_VALUE(cond, "fulgurite::", op, ": ", __VA_ARGS__)
#define FULGURITE_CHECK_SERVED(cond, ...) \
  TORCH_CHECK_NOT_IMPLEMENTED(cond, "fulgurite::", op, ": ", __VA_ARGS__)

namespace fulgurite {

/// float64, float32, bfloat16 or float16.
inline bool is_served_float(at::ScalarType dtype) {
  return dtype == at::kDouble || dtype == at::kFloat || dtype == at::kBFloat16 ||
         dtype == at::kHalf;
}

/// The type that sums are kept in: float64 for float64, else float32.
inline at::ScalarType accumulate_type(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

/// Options of a tensor of sums beside x.
inline at::TensorOptions accumulate_options(const at::Tensor& x) {
  return x.options().dtype(accumulate_type(x.scalar_type()));
}

inline void check_float(const char* op, const char* name, const at::Tensor& tensor) {
  FULGURITE_CHECK_TYPE(is_served_float(tensor.scalar_type()), "expected ", name,
                       " of dtype float64, float32, bfloat16 or float16, got ",
                       tensor.scalar_type());
}

inline void check_same_dtype(const char* op, const char* name, const at::Tensor& tensor,
                             const char* as, const at::Tensor& other) {
  FULGURITE_CHECK_TYPE(tensor.scalar_type() == other.scalar_type(), "expected ", name, " of ", as,
                       "'s dtype ", other.scalar_type(), ", got ", tensor.scalar_type());
}

/// A number that is computed with: NaN or Inf in it would be NaN in every result.
inline void check_finite(const char* op, const char* name, double value) {
  FULGURITE_CHECK_VALUE(std::isfinite(value), "expected ", name, " finite, got ", value);
}

/// What is added to a divisor: below 0 it could make it 0.
inline void check_not_negative(const char* op, const char* name, double value) {
  FULGURITE_CHECK_VALUE(std::isfinite(value) && value >= 0, "expected ", name,
                        " finite and >= 0, got ", value);
}

/// On the device of the operator's first tensor. That it is dense the dispatcher knows (common/define.h).
inline void check_place(const char* op, const char* name, const at::Tensor& tensor,
                        const at::Tensor& first) {
  FULGURITE_CHECK(tensor.device() == first.device(), "expected ", name, " on device ",
                  first.device(), ", got ", tensor.device());
}

// Sizes that only data decides are asked nothing that they cannot answer: the same symbol is known to fit, and what is not known is
// asserted when the program runs.
inline bool holds(const c10::SymBool& fits) {
  return TORCH_GUARD_OR_FALSE(fits) || fits.expect_true(__FILE__, __LINE__);
}
inline bool same_size(const c10::SymInt& size, const c10::SymInt& other) {
  return holds(size.sym_eq(other));
}
inline bool same_sizes(c10::SymIntArrayRef sizes, c10::SymIntArrayRef others) {
  return sizes.size() == others.size() &&
         std::equal(sizes.begin(), sizes.end(), others.begin(), same_size);
}
/// Whether a dimension broadcasts to `full`.
inline bool broadcasts(const c10::SymInt& size, const c10::SymInt& full) {
  return holds(size.sym_eq(full).sym_or(size.sym_eq(1)));
}

inline void check_sizes(const char* op, const char* name, const at::Tensor& tensor,
                        c10::SymIntArrayRef sizes) {
  FULGURITE_CHECK(same_sizes(tensor.sym_sizes(), sizes), "expected ", name, " of shape ", sizes,
                  ", got ", tensor.sym_sizes());
}

inline void check_dim(const char* op, const char* name, const at::Tensor& tensor, int64_t dim,
                      const char* shape) {
  FULGURITE_CHECK(tensor.dim() == dim, "expected ", name, " of shape ", shape, ", got ",
                  tensor.sym_sizes());
}

}  // namespace fulgurite
