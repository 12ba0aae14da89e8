#include "moe/cpu/sorted.h"

#include "common/dtype.h"
#include "cpu/tasks.h"

namespace fulgurite {

using at::Tensor;

FULGURITE_KERNEL(moe_experts_products, moe_experts_grad_weight, GradWeightTaskFn);
FULGURITE_KERNEL(moe_experts_products, moe_experts_grad_weight_layout, GradWeightLayoutFn);
FULGURITE_KERNEL(moe_experts_bias, moe_experts_grad_bias, GradBiasTaskFn);

ExpertMatrices matrices(const Tensor& w, bool transposed) {
  const int row = transposed ? 2 : 1;
  return {w.const_data_ptr(), w.stride(0), w.stride(row), w.stride(3 - row)};
}

ExpertRows expert_rows(const std::optional<Tensor>& bias) {
  if (!bias) return {};
  return {bias->const_data_ptr(), bias->stride(0), bias->stride(1)};
}

void run_grad_weight(const int64_t* offsets, const SortedRows& a, const SortedRows& b,
                     const Tensor& grad) {
  const int64_t E = grad.size(0);
  GradWeightParams p{};
  p.dtype = kernel_dtype(grad.scalar_type());
  p.M = grad.size(1);
  p.N = grad.size(2);
  p.offsets = offsets;
  p.a = a;
  p.b = b;
  p.grad = grad.mutable_data_ptr();
  run_kernel(moe_experts_grad_weight_kernel, moe_experts_grad_weight_layout_kernel, p,
             {E * ceil_div(p.M, kGradRows) * ceil_div(p.N, kGradColumns),
              offsets[E] * p.M * p.N + grad.numel()});
}

void run_grad_bias(const int64_t* offsets, const SortedRows& rows, const void* weights,
                   const Tensor& grad) {
  const int64_t E = grad.size(0);
  GradBiasParams p{};
  p.dtype = kernel_dtype(grad.scalar_type());
  p.N = grad.size(1);
  p.offsets = offsets;
  p.rows = rows;
  p.weights = weights;
  p.grad = grad.mutable_data_ptr();
  run_kernel(moe_experts_grad_bias_kernel, p,
             {E * ceil_div(p.N, kBiasColumns), offsets[E] * p.N + grad.numel()});
}

}  // namespace fulgurite
