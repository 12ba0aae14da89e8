#include "moe/cpu/experts_call.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "common/dtype.h"
#include "common/huge_pages.h"
#include "common/tasks.h"
#include "moe/cpu/plan.h"

namespace fulgurite {

FULGURITE_KERNEL(moe_experts_gather, moe_experts_gather, GatherTaskFn);
FULGURITE_KERNEL(moe_experts_hidden, moe_experts_hidden, HiddenTaskFn);
FULGURITE_KERNEL(moe_experts_hidden, moe_experts_grad_hidden, HiddenTaskFn);
FULGURITE_KERNEL(moe_experts_hidden, moe_experts_hidden_layout, HiddenLayoutFn);
FULGURITE_KERNEL(moe_experts_products, moe_experts_reduce, ReduceTaskFn);
FULGURITE_KERNEL(moe_experts_products, moe_experts_reduce_layout, ReduceLayoutFn);

namespace {

Activation parse_activation(std::string_view name) {
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "relu") return Activation::kRelu;
  return name == "relu2" ? Activation::kRelu2 : Activation::kSwigluOai;
}

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

void run_segments(Kernel<HiddenTaskFn>& kernel, const HiddenParams& p, const ExpertSizes& s,
                  const SortedPlan& plan, int64_t scratch) {
  const int64_t tasks = static_cast<int64_t>(plan.segments.size()) * ceil_div(s.I, kHiddenBlock);
  run_kernel(kernel, p, {tasks, s.products(), scratch});
}

}  // namespace

SortedPlan::SortedPlan(const Tensor& ids, const ExpertSizes& s)
    : permutation(at::empty({s.T * s.K}, contiguous_like(ids).dtype(at::kInt))), offsets(s.E + 1) {
  make_plan(ids, s.E, permutation.mutable_data_ptr<int32_t>(), nullptr, offsets.data());
  segments = segments_of(offsets.data(), s.E);
}

HiddenParams hidden_params(const ExpertSizes& s, const SortedPlan& plan, const ExpertsArgs& a) {
  HiddenParams p{};
  p.dtype = kernel_dtype(a.x.scalar_type());
  p.H = s.H;
  p.I = s.I;
  p.activation = parse_activation(a.activation);
  p.gated = a.gated;
  p.interleaved = a.interleaved;
  p.alpha = a.alpha;
  p.limit = a.limit;
  p.segments = plan.segments.data();
  p.permutation = plan.assignments();
  p.w_in = matrices(a.w_in, a.transposed);
  p.w_out = matrices(a.w_out, a.transposed);
  p.b_in = expert_rows(a.b_in);
  p.b_out = expert_rows(a.b_out);
  return p;
}

Tensor operands(const HiddenParams& p, int64_t rows, int64_t columns, const Tensor& like) {
  const HiddenLayout layout = layout_of(p);
  const auto options = operand_options(layout, like);
  const int64_t padded = ceil_div(columns, layout.row_multiple) * layout.row_multiple;
  return padded == columns ? on_huge_pages(at::empty({rows, columns}, options))
                           : at::zeros({rows, padded}, options);
}

Tensor gather_operands(const HiddenParams& p, const SortedPlan& plan, const Tensor& rows,
                       const ExpertSizes& s) {
  constexpr int64_t kRowsPerTask = 64;
  const HiddenLayout layout = layout_of(p);
  const int64_t line = 64 / layout.operand_bytes;
  const int64_t width =
      (ceil_div(s.H, line) + 1) * line;  // no power of two: moe/cpu/experts_gather.cpp
  const Tensor to = on_huge_pages(at::empty({s.T * s.K, width}, operand_options(layout, rows)));
  run_rows(moe_experts_gather_kernel,
           GatherParams{p.dtype, s.H, plan.gathered(rows, s), to.mutable_data_ptr(), width},
           plan.rows(), kRowsPerTask, plan.rows() * s.H);
  return to;
}

void run_hidden(const HiddenParams& p, const ExpertSizes& s, const SortedPlan& plan) {
  run_segments(moe_experts_hidden_kernel, p, s, plan, layout_of(p).hidden);
}

void run_grad_hidden(const HiddenParams& p, const ExpertSizes& s, const SortedPlan& plan) {
  run_segments(moe_experts_grad_hidden_kernel, p, s, plan, layout_of(p).grad_hidden);
}

void run_reduce(const ExpertSizes& s, const SortedPlan& plan, const Tensor& rows, int64_t depth,
                const ExpertMatrices& b, const ExpertRows& bias, const void* weights,
                const Tensor& out) {
  constexpr int64_t
      kRowsPerExpert = 256,
      kLongest = 4096;  // long enough to pay for packing, short enough for the sums to stay in L2
  ReduceParams p{};
  p.dtype = kernel_dtype(out.scalar_type());
  p.T = s.T;
  p.K = s.K;
  p.E = s.E;
  p.H = s.H;
  p.depth = depth;
  p.row_width = rows.size(1);
  p.token_range = std::min({s.T, kLongest, std::max(kRowsPerExpert, kRowsPerExpert * s.E / s.K)});
  p.permutation = plan.assignments();
  p.offsets = plan.offsets.data();
  p.rows = rows.const_data_ptr();
  p.b = b;
  p.bias = bias;
  p.weights = weights;
  p.out = out.mutable_data_ptr();
  run_kernel(moe_experts_reduce_kernel, moe_experts_reduce_layout_kernel, p,
             {ceil_div(s.T, p.token_range) * ceil_div(s.H, kHiddenBlock), s.products()});
}

Tensor accumulation_weights(const ExpertsArgs& a) {
  return a.weights.to(accumulate_type(a.x.scalar_type())).contiguous();
}

}  // namespace fulgurite
