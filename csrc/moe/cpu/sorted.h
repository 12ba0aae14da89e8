// What the operators on rows sorted by expert share on the CPU, torch side.
#pragma once

#include "moe/cpu/kernels/experts_params.h"
#include "moe/cpu/tensors.h"

namespace fulgurite {

/// (E, rows, columns), or (E, columns, rows) where `transposed`.
ExpertMatrices matrices(const at::Tensor& w, bool transposed = false);
/// (E, columns), or none.
ExpertRows expert_rows(const std::optional<at::Tensor>& bias);

inline SortedRows operand_rows(const at::Tensor& rows) { return {matrix(rows), nullptr, 1, true}; }
inline SortedRows stored_rows(const at::Tensor& rows) { return {matrix(rows), nullptr, 1, false}; }

/// grad (E,M,N) from a, M wide, and b, N wide, where grad is contiguous and offsets (E+1).
void run_grad_weight(const int64_t* offsets, const SortedRows& a, const SortedRows& b,
                     const at::Tensor& grad);
/// grad (E,N) from rows, N wide.
void run_grad_bias(const int64_t* offsets, const SortedRows& rows, const void* weights,
                   const at::Tensor& grad);

}  // namespace fulgurite
