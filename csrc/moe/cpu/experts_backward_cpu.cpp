// The experts' backward on the CPU, torch side.
#include "common/fresh.h"
#include "cpu/huge_pages.h"
#include "cpu/tasks.h"
#include "moe/cpu/experts_call.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

namespace fulgurite {

FULGURITE_KERNEL(moe_experts_bias, moe_experts_bias_dots, HiddenTaskFn);

namespace {

/// dw of a part's assignments: the sums of their blocks of columns, in order.
template <class T>
void sum_dots(const ExpertsPart& part, const Tensor& dots, const Tensor& grad_weights) {
  const T* dot = dots.const_data_ptr<T>();
  T* const grad = grad_weights.mutable_data_ptr<T>();
  for (int64_t row = 0; row < part.rows; ++row) {
    T sum = 0;
    for (int64_t i = 0; i < dots.size(1); ++i) sum += *dot++;
    grad[part.assignments[row]] = sum;
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

/// What the gradients of a part are computed from, in memory that the next part writes again.
struct Backward {
  const ExpertsBackwardArgs& a;
  ExpertSizes s;
  SortedPlan plan;
  Tensor weights;  // (T,K) of the accumulation type
  HiddenParams params;
  // for the assignments of a part, in order
  Tensor gathered;     // (rows,H) operands: x where the hidden layer is computed again, then dout
  Tensor hidden;       // (rows,width); (T·K,width) where it was saved
  Tensor grad_hidden;  // (rows,width) operands
  Tensor activated;    // (rows,I) operands: w·h
  Tensor dots;         // (rows,blocks of columns), and b_out's

  Backward(const ExpertsBackwardArgs& args, const ExpertSizes& sizes)
      : a(args),
        s(sizes),
        plan(a.forward.ids, s),
        weights(accumulation_weights(a.forward)),
        params(hidden_params(s, a.forward)) {
    const ExpertsArgs& f = a.forward;
    const auto [want_x, want_weights, want_in, want_out, want_b_in, want_b_out] = a.output_mask;
    const auto rows = [&](bool wanted) { return wanted ? plan.most_rows : 0; };
    HiddenParams& p = params;
    p.need_grad = want_x || want_weights || want_in || want_b_in;
    const auto options = contiguous_like(weights);
    gathered = operands(p, rows(p.need_grad || (want_out && !a.hidden)), s.H, f.x);
    hidden = a.hidden ? a.hidden->contiguous()
                      : on_huge_pages(at::empty({rows(needs_hidden()), s.width}, options));
    grad_hidden = operands(p, rows(p.need_grad), s.width, f.x);
    activated = operands(p, rows(want_out), s.I, f.x);
    dots = at::empty({rows(p.need_grad), ceil_div(s.I, kHiddenBlock) + (f.b_out ? 1 : 0)}, options);
    p.x = p.grad = operand_rows(gathered);
    p.weights = weights.const_data_ptr();
    p.row_width = activated.size(1);
    p.grad_hidden = grad_hidden.mutable_data_ptr();
    p.grad_width = grad_hidden.size(1);
    p.dots = dots.mutable_data_ptr();
    p.dot_parts = dots.size(1);
  }

  bool needs_hidden() const { return params.need_grad || a.output_mask[3]; }

  /// grad_hidden, activated and dots of a part.
  void run(const ExpertsPart& part) {
    if (!needs_hidden()) return;
    HiddenParams& p = params;
    set_part(p, part, a.forward);
    find_hidden(part);
    p.activated = a.output_mask[3] ? activated.mutable_data_ptr() : nullptr;
    if (p.need_grad) gather_operands(p, part, s.K, a.grad, gathered);
    run_grad_hidden(p, part);
    if (a.output_mask[1] && p.b_out.data)
      run_kernel(moe_experts_bias_dots_kernel, p,
                 {static_cast<int64_t>(part.segments.size()), part.rows * s.H});
  }

  void find_hidden(const ExpertsPart& part) {
    HiddenParams& p = params;
    if (a.hidden) {  // read only by the backward
      p.hidden = const_cast<void*>(positions_of(part, hidden).const_data_ptr());
      return;
    }
    p.hidden = hidden.mutable_data_ptr();
    p.activated = nullptr;
    gather_operands(p, part, s.K, a.forward.x, gathered);
    run_hidden(p, part);
  }

  void store_grad_weights(const ExpertsPart& part, const Tensor& grad) const {
    if (grad.scalar_type() == at::kDouble)
      sum_dots<double>(part, dots, grad);
    else
      sum_dots<float>(part, dots, grad);
  }

  /// Sums of aᵀ b, or their transposes.
  void run_weight(const ExpertsPart& part, const SortedRows& rows, const SortedRows& columns,
                  const Tensor& grad) const {
    const bool transposed = a.forward.transposed;
    run_grad_weight(part.offsets.data(), transposed ? columns : rows, transposed ? rows : columns,
                    experts_of(part, grad));
  }
};

ExpertsGradients experts_backward_cpu(const ExpertsBackwardArgs& a) {
  const ExpertSizes s = expert_sizes(check_experts_backward(a));
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
  Backward b(a, s);
  const TokenSums sums(s, b.plan, grad_x);
  const Tensor assignment_grads = at::zeros(grad_weights.sizes(), contiguous_like(b.weights));
  const SortedRows grad_hidden = operand_rows(b.grad_hidden), activated = operand_rows(b.activated);
  for (const ExpertsPart& part : b.plan.parts) {
    const SortedRows x = gathered_rows(part, f.x, s.K), grad = gathered_rows(part, a.grad, s.K);
    const int64_t* const offsets = part.offsets.data();
    b.run(part);
    if (want_weights) b.store_grad_weights(part, assignment_grads);
    if (want_x)
      sums.add(part, b.grad_hidden, s.width, matrices(experts_of(part, f.w_in), f.transposed), {},
               nullptr);
    if (want_in) b.run_weight(part, grad_hidden, x, grad_w_in);
    if (want_out) b.run_weight(part, grad, activated, grad_w_out);
    if (want_b_in && f.b_in)
      run_grad_bias(offsets, grad_hidden, nullptr, experts_of(part, grad_b_in));
    if (want_b_out && f.b_out)
      run_grad_bias(offsets, grad, b.weights.const_data_ptr(), experts_of(part, grad_b_out));
  }
  if (want_weights) grad_weights = assignment_grads.to(f.weights.scalar_type());
  return {grad_x, grad_weights, grad_w_in, grad_w_out, grad_b_in, grad_b_out};
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, CPU, m) {
  using namespace fulgurite;
  implement<experts_backward_cpu>(m);
}
