#include "moe/cpu/experts_call.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "common/check_choice.h"
#include "common/dtype.h"
#include "cpu/huge_pages.h"
#include "cpu/tasks.h"

namespace fulgurite {

FULGURITE_KERNEL(moe_experts_gather, moe_experts_gather, GatherTaskFn);
FULGURITE_KERNEL(moe_experts_hidden, moe_experts_hidden, HiddenTaskFn);
FULGURITE_KERNEL(moe_experts_hidden, moe_experts_grad_hidden, HiddenTaskFn);
FULGURITE_KERNEL(moe_experts_hidden, moe_experts_hidden_layout, HiddenLayoutFn);
FULGURITE_KERNEL(moe_experts_products, moe_experts_reduce, ReduceTaskFn);
FULGURITE_KERNEL(moe_experts_products, moe_experts_reduce_layout, ReduceLayoutFn);

namespace {

HiddenLayout layout_of(const HiddenParams& p) {
  HiddenLayout layout{};
  moe_experts_hidden_layout_kernel.get(p.dtype)(p, &layout);
  return layout;
}

/// Options of operands for a tensor of `like`'s type.
at::TensorOptions operand_options(const HiddenLayout& layout, const Tensor& like) {
  const bool as_stored = layout.operand_bytes == static_cast<int64_t>(like.element_size());
  return contiguous_like(like).dtype(as_stored ? like.scalar_type()
                                               : accumulate_type(like.scalar_type()));
}

void run_segments(Kernel<HiddenTaskFn>& kernel, const HiddenParams& p, const ExpertsPart& part,
                  int64_t scratch) {
  const int64_t tasks = static_cast<int64_t>(part.segments.size()) * ceil_div(p.I, kHiddenBlock);
  run_kernel(kernel, p, {tasks, part.rows * p.H * p.I, scratch});
}

}  // namespace

HiddenParams hidden_params(const ExpertSizes& s, const ExpertsArgs& a) {
  HiddenParams p{};
  p.dtype = kernel_dtype(a.x.scalar_type());
  p.H = s.H;
  p.I = s.I;
  p.activation = {choice_of(kActivations, a.activation), a.alpha, a.limit};
  p.gated = a.gated;
  p.interleaved = a.interleaved;
  return p;
}

void set_part(HiddenParams& p, const ExpertsPart& part, const ExpertsArgs& a) {
  p.segments = part.segments.data();
  p.permutation = part.assignments;
  p.w_in = matrices(experts_of(part, a.w_in), a.transposed);
  p.w_out = matrices(experts_of(part, a.w_out), a.transposed);
  p.b_in = expert_rows(experts_of(part, a.b_in));
  p.b_out = expert_rows(experts_of(part, a.b_out));
}

Tensor operands(const HiddenParams& p, int64_t rows, int64_t columns, const Tensor& like) {
  const HiddenLayout layout = layout_of(p);
  const auto options = operand_options(layout, like);
  const int64_t line = 64 / layout.operand_bytes;
  const std::array<int64_t, 2> sizes{rows, (ceil_div(columns, line) + 1) * line};
  return columns % layout.row_multiple ? at::zeros(sizes, options)
                                       : on_huge_pages(at::empty(sizes, options));
}

void gather_operands(const HiddenParams& p, const ExpertsPart& part, int64_t K, const Tensor& rows,
                     const Tensor& to) {
  constexpr int64_t kRowsPerTask = 64;
  run_rows(
      moe_experts_gather_kernel,
      GatherParams{p.dtype, p.H, gathered_rows(part, rows, K), to.mutable_data_ptr(), to.size(1)},
      part.rows, kRowsPerTask, part.rows * p.H);
}

void run_hidden(const HiddenParams& p, const ExpertsPart& part) {
  run_segments(moe_experts_hidden_kernel, p, part, layout_of(p).hidden);
}

void run_grad_hidden(const HiddenParams& p, const ExpertsPart& part) {
  run_segments(moe_experts_grad_hidden_kernel, p, part, layout_of(p).grad_hidden);
}

TokenSums::TokenSums(const ExpertSizes& s, const SortedPlan& plan, const Tensor& out)
    : s_(s), out_(out) {
  const at::ScalarType sums = accumulate_type(out.scalar_type());
  if (plan.parts.size() > 1)
    between_ = sums == out.scalar_type()
                   ? out
                   : on_huge_pages(at::empty(out.sizes(), contiguous_like(out).dtype(sums)));
}

void TokenSums::add(const ExpertsPart& part, const Tensor& rows, int64_t depth,
                    const ExpertMatrices& b, const ExpertRows& bias, const void* weights) const {
  constexpr int64_t
      kRowsPerExpert = 256,
      kLongest = 4096;  // long enough to pay for packing, short enough for the sums to stay in L2
  ReduceParams p{};
  p.dtype = kernel_dtype(out_.scalar_type());
  p.T = s_.T;
  p.K = s_.K;
  p.E = part.experts;
  p.H = s_.H;
  p.depth = depth;
  p.row_width = rows.size(1);
  p.token_range = tokens_per_task(s_, kRowsPerExpert, kLongest);
  p.permutation = part.assignments;
  p.offsets = part.offsets.data();
  p.rows = rows.const_data_ptr();
  p.b = b;
  p.bias = bias;
  p.weights = weights;
  p.before = part.begins ? nullptr : between_.const_data_ptr();
  p.after = part.ends ? nullptr : between_.mutable_data_ptr();
  p.out = out_.mutable_data_ptr();
  run_kernel(moe_experts_reduce_kernel, moe_experts_reduce_layout_kernel, p,
             {ceil_div(s_.T, p.token_range) * ceil_div(s_.H, kHiddenBlock),
              part.rows * s_.H * depth + s_.T * s_.H});
}

Tensor accumulation_weights(const ExpertsArgs& a) {
  return a.weights.to(accumulate_type(a.x.scalar_type())).contiguous();
}

}  // namespace fulgurite
