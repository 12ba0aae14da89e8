// Validation that both AdamW operators share.
#pragma once

#include "optim/args.h"

namespace fulgurite {

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
