// The experts' backward on the CPU, torch side.
#include "common/fresh.h"
#include "common/huge_pages.h"
#include "common/tasks.h"
#include "moe/cpu/experts_call.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

namespace fulgurite {

FULGURITE_KERNEL(moe_experts_bias, moe_experts_bias_dots, HiddenTaskFn);

namespace {

/// dw of each assignment: its parts in order; 0 for sentinels.
template <class T>
void sum_dots(const SortedPlan& plan, const Tensor& dots, const Tensor& grad_weights) {
  const T* part = dots.const_data_ptr<T>();
  T* const grad = grad_weights.mutable_data_ptr<T>();
  for (int64_t row = 0; row < grad_weights.numel(); ++row) {
    T sum = 0;
    if (row < plan.rows())
      for (int64_t i = 0; i < dots.size(1); ++i) sum += *part++;
    grad[plan.assignments()[row]] = sum;
  }
}

/// The gradients that are asked for, of the values that `fresh` gives them.
template <class Fresh>
ExpertsGradients gradients(const ExpertsBackwardArgs& a, const Fresh& fresh) {
  static constexpr int64_t kNone[] = {0};
  const ExpertsArgs& f = a.forward;
  const auto one = [&](int i, const OptionalTensor& input) {
    return fresh(a.output_mask[i] && input ? input->sizes() : at::IntArrayRef(kNone),
                 contiguous_like(input.value_or(f.x)));
  };
  return {one(0, f.x),     one(1, f.weights), one(2, f.w_in),
          one(3, f.w_out), one(4, f.b_in),    one(5, f.b_out)};
}

/// What the gradients are computed from, for the assignments in order.
struct Backward {
  ExpertSizes s;
  SortedPlan plan;
  Tensor weights;  // (T,K) of the accumulation type
  HiddenParams params;
  Tensor hidden;       // (T·K,width)
  Tensor grad;         // (T·K,H) operands: dout
  Tensor grad_hidden;  // (T·K,width) operands
  Tensor activated;    // (T·K,I) operands: w·h
  Tensor dots;         // (T·K,parts)

  Backward(const ExpertsBackwardArgs& a, const ExpertSizes& sizes)
      : s(sizes),
        plan(a.forward.ids, s),
        weights(accumulation_weights(a.forward)),
        params(hidden_params(s, plan, a.forward)) {
    const auto [want_x, want_weights, want_in, want_out, want_b_in, want_b_out] = a.output_mask;
    HiddenParams& p = params;
    p.need_grad = want_x || want_weights || want_in || want_b_in;
    if (p.need_grad || want_out) find_hidden(a);
    const int64_t rows = s.T * s.K, blocks = ceil_div(s.I, kHiddenBlock);
    grad_hidden = operands(p, p.need_grad ? rows : 0, s.width, a.forward.x);
    activated = operands(p, want_out ? rows : 0, s.I, a.forward.x);
    dots = at::empty({p.need_grad ? rows : 0, blocks + (p.b_out.data ? 1 : 0)},
                     contiguous_like(weights));
    if (p.need_grad) {
      grad = gather_operands(p, plan, a.grad, s);
      p.grad = operand_rows(grad);
    }
    p.weights = weights.const_data_ptr();
    p.activated = want_out ? activated.mutable_data_ptr() : nullptr;
    p.row_width = activated.size(1);
    p.grad_hidden = grad_hidden.mutable_data_ptr();
    p.grad_width = grad_hidden.size(1);
    p.dots = dots.mutable_data_ptr();
    p.dot_parts = dots.size(1);
    if (p.need_grad || want_out) run_grad_hidden(p, s, plan);
    if (want_weights && p.b_out.data)
      run_kernel(moe_experts_bias_dots_kernel, p,
                 {static_cast<int64_t>(plan.segments.size()), rows * s.H});
  }

  void find_hidden(const ExpertsBackwardArgs& a) {
    if (a.hidden) {
      hidden = a.hidden->contiguous();
      params.hidden = const_cast<void*>(hidden.const_data_ptr());  // read only by the backward
    } else {
      hidden = on_huge_pages(at::empty({s.T * s.K, s.width}, contiguous_like(weights)));
      params.hidden = hidden.mutable_data_ptr();
      const Tensor x = gather_operands(params, plan, a.forward.x, s);
      params.x = operand_rows(x);
      run_hidden(params, s, plan);
    }
  }

  Tensor grad_weights(at::ScalarType dtype) const {
    Tensor grad = fresh_like(weights);
    if (grad.scalar_type() == at::kDouble)
      sum_dots<double>(plan, dots, grad);
    else
      sum_dots<float>(plan, dots, grad);
    return grad.to(dtype);
  }

  /// Sums of aᵀ b, or their transposes.
  void run_weight(const SortedRows& a, const SortedRows& b, bool transposed,
                  const Tensor& grad) const {
    run_grad_weight(plan.offsets.data(), transposed ? b : a, transposed ? a : b, grad);
  }
};

ExpertsGradients experts_backward_cpu(const ExpertsBackwardArgs& a) {
  const ExpertSizes s(check_experts_backward(a));
  const ExpertsArgs& f = a.forward;
  const auto zeros = [](at::IntArrayRef sizes, const auto& options) {
    return at::zeros(sizes, options);
  };
  const auto empty = [](at::IntArrayRef sizes, const auto& options) {
    return on_huge_pages(at::empty(sizes, options));
  };
  if (s.nothing()) return gradients(a, zeros);
  auto [grad_x, grad_weights, grad_w_in, grad_w_out, grad_b_in, grad_b_out] = gradients(a, empty);
  const auto [want_x, want_weights, want_in, want_out, want_b_in, want_b_out] = a.output_mask;
  const Backward b(a, s);
  const SortedRows x = b.plan.gathered(f.x, s), grad = b.plan.gathered(a.grad, s);
  const SortedRows grad_hidden = operand_rows(b.grad_hidden);
  const int64_t* const offsets = b.plan.offsets.data();
  if (want_weights) grad_weights = b.grad_weights(f.weights.scalar_type());
  if (want_x)
    run_reduce(s, b.plan, b.grad_hidden, s.width, matrices(f.w_in, f.transposed), {}, nullptr,
               grad_x);
  if (want_in) b.run_weight(grad_hidden, x, f.transposed, grad_w_in);
  if (want_out) b.run_weight(grad, operand_rows(b.activated), f.transposed, grad_w_out);
  if (want_b_in && f.b_in) run_grad_bias(offsets, grad_hidden, nullptr, grad_b_in);
  if (want_b_out && f.b_out) run_grad_bias(offsets, grad, b.weights.const_data_ptr(), grad_b_out);
  return {grad_x, grad_weights, grad_w_in, grad_w_out, grad_b_in, grad_b_out};
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, CPU, m) {
  using namespace fulgurite;
  m.impl("_moe_experts_backward", experts_backward_from_schema<experts_backward_cpu>);
}
