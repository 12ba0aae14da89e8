// Errors that both AdamW operators share. The rules themselves are in valid.h.
#pragma once

#include "optim/valid.h"

namespace fulgurite {

using OperandLists = c10::ArrayRef<OperandList>;

// dtypes, lengths, shapes and values are checked in this order, each over all tensors.
void check_entry_types(const char* op, const StepArgs& a, OperandLists lists, size_t i);
void check_entry_type(const char* op, bool served, const char* name, TensorList list, size_t i,
                      const char* expected);
void check_length(const char* op, const char* name, size_t length, size_t params, bool optional);
void check_lengths(const char* op, const StepArgs& a, OperandLists lists);
void check_shapes(const char* op, const StepArgs& a, OperandLists lists);
/// An entry is on hyper's device.
void check_entry_place(const char* op, const char* name, const Tensor& tensor, size_t i,
                       const Tensor& hyper);
void check_values(const char* op, const StepArgs& a);

// Of what is there once.
void check_single_types(const char* op, const StepArgs& a);
void check_single_shapes(const char* op, const StepArgs& a);

/// What only memory can tell: strides that overlap, a parameter listed twice.
void check_overlap(const char* op, const char* name, TensorList list);
void check_memory(const char* op, const StepArgs& a, OperandLists lists);
/// The contents of hyper and steps, where the CPU can read them.
void check_hyper_contents(const char* op, const Tensor& hyper);
void check_contents(const char* op, const StepArgs& a);

}  // namespace fulgurite
