// Validation that both AdamW operators share.
#pragma once

#include <cmath>

#include "common/check.h"
#include "optim/args.h"

namespace fulgurite {

inline bool is_half(at::ScalarType dtype) { return dtype == at::kBFloat16 || dtype == at::kHalf; }

// dtypes that go with a parameter's.
inline bool serves_grad(at::ScalarType param, at::ScalarType grad) {
  return param == at::kDouble ? grad == at::kDouble : grad == at::kFloat || is_half(grad);
}
inline bool serves_moment(at::ScalarType param, at::ScalarType moment) {
  return moment == accumulate_type(param) || (param != at::kDouble && moment == at::kBFloat16);
}
inline bool serves_master(at::ScalarType param, at::ScalarType master) {
  return (master == at::kFloat && param != at::kDouble) ||
         (master == at::kShort && param == at::kBFloat16);
}
inline bool serves_copy(at::ScalarType param, at::ScalarType copy) {
  return copy == at::kFloat || (param != at::kDouble && is_half(copy));
}
inline bool serves_ema(at::ScalarType param, at::ScalarType ema) {
  return ema == accumulate_type(param);
}

/// What a count of steps can be.
inline bool is_count(float step) {
  return step >= 0 && step == std::floor(step) && std::isfinite(step);
}

/// Entry i of an optional list is there.
inline bool has(TensorList list, size_t i) { return i < list.size() && list[i].sym_numel() != 0; }

/// TypeError for entry i of a list unless it is served.
void check_entry_type(const char* op, bool served, const char* name, TensorList list, size_t i,
                      const char* expected);
/// A list is as long as params; an optional one may be empty.
void check_length(const char* op, const char* name, size_t length, size_t params, bool optional);
/// Entries are on hyper's device and of their parameters' shapes.
void check_list_shapes(const char* op, const char* name, TensorList list, const StepArgs& a,
                       bool optional);
void check_entry_place(const char* op, const char* name, const Tensor& tensor, size_t i,
                       const Tensor& hyper);

/// dtypes of entry i of params, grads, masters and steps.
void check_step_entry_types(const char* op, const StepArgs& a, size_t i);
/// dtypes of what is there once.
void check_step_scalar_types(const char* op, const StepArgs& a);
void check_step_lengths(const char* op, const StepArgs& a);
void check_step_shapes(const char* op, const StepArgs& a);
void check_step_values(const char* op, const StepArgs& a);

/// What only memory can tell: strides that overlap, a parameter listed twice, the contents of hyper
/// and steps.
void check_overlap(const char* op, const char* name, TensorList list);
void check_step_contents(const char* op, const StepArgs& a);

}  // namespace fulgurite
