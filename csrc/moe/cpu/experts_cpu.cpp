// The experts' feed-forward on the CPU, torch side: plan, workspace, tasks.
#include "common/check.h"
#include "common/dtype.h"
#include "common/tasks.h"
#include "moe/check.h"
#include "moe/cpu/plan.h"
#include "moe/cpu/tensors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fulgurite {

FULGURITE_KERNEL(moe_experts_hidden, moe_experts_hidden, HiddenTaskFn);
FULGURITE_KERNEL(moe_experts_hidden, moe_experts_grad_hidden, HiddenTaskFn);
FULGURITE_KERNEL(moe_experts_hidden, moe_experts_hidden_layout, HiddenLayoutFn);
FULGURITE_KERNEL(moe_experts_products, moe_experts_reduce, ReduceTaskFn);
FULGURITE_KERNEL(moe_experts_products, moe_experts_reduce_layout, ReduceLayoutFn);
FULGURITE_KERNEL(moe_experts_products, moe_experts_grad_weight, GradWeightTaskFn);
FULGURITE_KERNEL(moe_experts_products, moe_experts_grad_weight_layout, GradWeightLayoutFn);

namespace {

struct Sizes {
  int64_t T, K, E, H, I;

  explicit Sizes(const ExpertsShape& s)
      : T(s.T.expect_int()),
        K(s.K.expect_int()),
        E(s.E.expect_int()),
        H(s.H.expect_int()),
        I(s.I.expect_int()) {}
  /// Nothing to compute: every result and every gradient is 0.
  bool nothing() const { return T == 0 || K == 0 || E == 0 || H == 0 || I == 0; }
  int64_t products() const { return T * K * H * I; }
};

at::TensorOptions contiguous_like(const Tensor& like) {
  return like.options().memory_format(at::MemoryFormat::Contiguous);
}

/// A fresh gradient of stacked weights is written once, all of it: a fault for each 4 KiB page
/// would cost more than the products of a few hundred tokens.
void advise_huge_pages(const Tensor& tensor) {
#if defined(__linux__)
  constexpr size_t kPage = 4096, kWorthwhile = 4 << 20;
  if (tensor.nbytes() < kWorthwhile) return;
  const uintptr_t begin =
      (reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr()) + kPage - 1) / kPage * kPage;
  const uintptr_t end =
      (reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr()) + tensor.nbytes()) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

/// (E, rows, columns) as it is stored.
ExpertMatrices matrices(const Tensor& w) {
  return {w.const_data_ptr(), w.stride(0), w.stride(1), w.stride(2)};
}
ExpertMatrices transposed(const ExpertMatrices& m) {
  return {m.data, m.expert_stride, m.column_stride, m.row_stride};
}

/// Assignments sorted by expert, and those of each expert cut into segments.
struct SortedPlan {
  Tensor permutation, offsets;
  std::vector<Segment> segments;
  int64_t rows;  // assignments that have an expert

  SortedPlan(const Tensor& ids, const Sizes& s) {
    permutation = at::empty({s.T * s.K}, contiguous_like(ids).dtype(at::kInt));
    offsets = at::empty({s.E + 1}, contiguous_like(ids).dtype(at::kLong));
    make_plan(ids, s.E, permutation.mutable_data_ptr<int32_t>(), nullptr,
              offsets.mutable_data_ptr<int64_t>());
    const int64_t* const offset = offsets.const_data_ptr<int64_t>();
    for (int64_t e = 0; e < s.E; ++e)
      for (int64_t first = offset[e]; first < offset[e + 1]; first += kSegmentRows)
        segments.push_back({e, first, std::min(kSegmentRows, offset[e + 1] - first)});
    rows = offset[s.E];
  }
};

HiddenParams hidden_params(const Sizes& s, const SortedPlan& plan, const Tensor& x,
                           const Tensor& w_in, const Tensor& w_out) {
  HiddenParams p{};
  p.dtype = kernel_dtype(x.scalar_type());
  p.K = s.K;
  p.H = s.H;
  p.I = s.I;
  p.segments = plan.segments.data();
  p.permutation = plan.permutation.const_data_ptr<int32_t>();
  p.x = matrix(x);
  p.w_in = matrices(w_in);
  p.w_out = matrices(w_out);
  return p;
}

HiddenLayout layout_of(const HiddenParams& p) {
  HiddenLayout layout{};
  moe_experts_hidden_layout_kernel.get(p.dtype)(p, &layout);
  return layout;
}

/// A matrix of operands: of x's type where products take that, else of the accumulation type.
Tensor operands(const HiddenParams& p, int64_t rows, int64_t columns, const Tensor& x) {
  const HiddenLayout layout = layout_of(p);
  const bool as_stored = layout.operand_bytes == static_cast<int64_t>(x.element_size());
  const auto options =
      contiguous_like(x).dtype(as_stored ? x.scalar_type() : accumulate_type(x.scalar_type()));
  const int64_t padded = ceil_div(columns, layout.row_multiple) * layout.row_multiple;
  return padded == columns ? at::empty({rows, columns}, options)
                           : at::zeros({rows, padded}, options);
}

void run_hidden(Kernel<HiddenTaskFn>& kernel, const HiddenParams& p, const Sizes& s,
                const SortedPlan& plan, int64_t HiddenLayout::* scratch) {
  const HiddenLayout layout = layout_of(p);
  const int64_t tasks = static_cast<int64_t>(plan.segments.size()) * ceil_div(s.I, kHiddenBlock);
  run_kernel(kernel, p, {tasks, s.products(), layout.*scratch});
}

/// out (T,H) from rows of operands (T·K, depth and padding) and b (depth,H) for each expert.
void run_reduce(const Sizes& s, const SortedPlan& plan, const Tensor& rows, int64_t depth,
                const ExpertMatrices& b, const void* weights, const Tensor& out) {
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
  p.permutation = plan.permutation.const_data_ptr<int32_t>();
  p.offsets = plan.offsets.const_data_ptr<int64_t>();
  p.rows = rows.const_data_ptr();
  p.b = b;
  p.weights = weights;
  p.out = out.mutable_data_ptr();
  int64_t scratch = 0;
  moe_experts_reduce_layout_kernel.get(p.dtype)(p, &scratch);
  run_kernel(moe_experts_reduce_kernel, p,
             {ceil_div(s.T, p.token_range) * ceil_div(s.H, kHiddenBlock), s.products(), scratch});
}

void run_grad_weight(const Sizes& s, const SortedPlan& plan, const SortedRows& a,
                     const SortedRows& b, const Tensor& grad) {
  GradWeightParams p{};
  p.dtype = kernel_dtype(grad.scalar_type());
  p.K = s.K;
  p.M = grad.size(1);
  p.N = grad.size(2);
  p.permutation = plan.permutation.const_data_ptr<int32_t>();
  p.offsets = plan.offsets.const_data_ptr<int64_t>();
  p.a = a;
  p.b = b;
  p.grad = grad.mutable_data_ptr();
  int64_t scratch = 0;
  moe_experts_grad_weight_layout_kernel.get(p.dtype)(p, &scratch);
  advise_huge_pages(grad);
  run_kernel(moe_experts_grad_weight_kernel, p,
             {s.E * ceil_div(p.M, kGradRows) * ceil_div(p.N, kGradColumns),
              s.products() + grad.numel(), scratch});
}

/// (T,K) in the accumulation type.
Tensor accumulation_weights(const Tensor& weights, const Tensor& x) {
  return weights.to(accumulate_type(x.scalar_type())).contiguous();
}

/// y, and gate and up of every sorted row where `hidden` (T·K,2I) is there.
Tensor forward(const Sizes& s, const Tensor& x, const Tensor& ids, const Tensor& weights,
               const Tensor& w_in, const Tensor& w_out, const Tensor& hidden) {
  if (s.nothing()) return at::zeros(x.sizes(), contiguous_like(x));
  Tensor y = at::empty(x.sizes(), contiguous_like(x));
  const SortedPlan plan(ids, s);
  const Tensor w = accumulation_weights(weights, x);
  HiddenParams p = hidden_params(s, plan, x, w_in, w_out);
  const Tensor activated = operands(p, s.T * s.K, s.I, x);
  p.activated = activated.mutable_data_ptr();
  p.row_width = activated.size(1);
  p.hidden = hidden.defined() ? hidden.mutable_data_ptr() : nullptr;
  run_hidden(moe_experts_hidden_kernel, p, s, plan, &HiddenLayout::hidden);
  if (hidden.defined() && plan.rows < hidden.size(0))
    hidden.narrow(0, plan.rows, hidden.size(0) - plan.rows).zero_();
  run_reduce(s, plan, activated, s.I, transposed(matrices(w_out)), w.const_data_ptr(), y);
  return y;
}

Tensor experts_cpu(const ExpertsArgs& args) {
  const Sizes s(check_experts(args));
  return forward(s, args.x, args.ids, args.weights, args.w_in, args.w_out, Tensor());
}

std::tuple<Tensor, Tensor> experts_forward_cpu(const Tensor& x, const Tensor& ids,
                                               const Tensor& weights, const Tensor& w_in,
                                               const Tensor& w_out) {
  const Sizes s(check_experts_tensors("_moe_experts_forward", x, ids, weights, w_in, w_out));
  const auto options = contiguous_like(x).dtype(accumulate_type(x.scalar_type()));
  const Tensor hidden = s.nothing() ? at::zeros({s.T * s.K, 2 * s.I}, options)
                                    : at::empty({s.T * s.K, 2 * s.I}, options);
  return {forward(s, x, ids, weights, w_in, w_out, hidden), hidden};
}

// ---- backward

/// dw of each assignment: its parts over the blocks of columns, in order; 0 for sentinels.
template <class T>
void sum_dots(const SortedPlan& plan, const Tensor& dots, const Tensor& grad_weights) {
  const int32_t* const permutation = plan.permutation.const_data_ptr<int32_t>();
  const T* part = dots.const_data_ptr<T>();
  T* const grad = grad_weights.mutable_data_ptr<T>();
  for (int64_t row = 0; row < grad_weights.numel(); ++row) {
    T sum = 0;
    if (row < plan.rows)
      for (int64_t block = 0; block < dots.size(1); ++block) sum += *part++;
    grad[permutation[row]] = sum;
  }
}

ExpertsGradients zero_gradients(const ExpertsBackwardArgs& a) {
  const auto zeros = [&](int i, const Tensor& like) {
    return at::zeros(a.output_mask[i] ? like.sizes() : at::IntArrayRef{0}, contiguous_like(like));
  };
  return {zeros(0, a.x), zeros(1, a.weights), zeros(2, a.w_in), zeros(3, a.w_out)};
}

ExpertsGradients experts_backward_cpu(const ExpertsBackwardArgs& a) {
  const Sizes s(check_experts_backward(a));
  if (s.nothing()) return zero_gradients(a);
  const auto [want_x, want_weights, want_in, want_out] = a.output_mask;
  const auto gradient = [](const Tensor& like, bool wanted) {
    return at::empty(wanted ? like.sizes() : at::IntArrayRef{0}, contiguous_like(like));
  };
  const SortedPlan plan(a.ids, s);
  const Tensor w = accumulation_weights(a.weights, a.x);
  HiddenParams p = hidden_params(s, plan, a.x, a.w_in, a.w_out);

  Tensor hidden;  // (T·K,2I)
  if (a.hidden) {
    hidden = a.hidden->contiguous();
    p.hidden = const_cast<void*>(hidden.const_data_ptr());  // read only by the backward
  } else {
    hidden = at::empty({s.T * s.K, 2 * s.I}, contiguous_like(w));
    p.hidden = hidden.mutable_data_ptr();
    run_hidden(moe_experts_hidden_kernel, p, s, plan, &HiddenLayout::hidden);
  }
  p.need_grad = want_x || want_weights || want_in;
  const Tensor grad_hidden = operands(p, p.need_grad ? s.T * s.K : 0, 2 * s.I, a.x);
  const Tensor activated = operands(p, want_out ? s.T * s.K : 0, s.I, a.x);  // w·h
  const Tensor dots =
      at::empty({p.need_grad ? s.T * s.K : 0, ceil_div(s.I, kHiddenBlock)}, contiguous_like(w));
  p.grad = matrix(a.grad);
  p.weights = w.const_data_ptr();
  p.activated = want_out ? activated.mutable_data_ptr() : nullptr;
  p.row_width = activated.size(1);
  p.grad_hidden = grad_hidden.mutable_data_ptr();
  p.dots = dots.mutable_data_ptr();
  run_hidden(moe_experts_grad_hidden_kernel, p, s, plan, &HiddenLayout::grad_hidden);

  Tensor grad_x = gradient(a.x, want_x),
         grad_weights = gradient(want_weights ? w : a.weights, want_weights);
  Tensor grad_w_in = gradient(a.w_in, want_in), grad_w_out = gradient(a.w_out, want_out);
  if (want_weights) {
    if (w.scalar_type() == at::kDouble)
      sum_dots<double>(plan, dots, grad_weights);
    else
      sum_dots<float>(plan, dots, grad_weights);
    grad_weights = grad_weights.to(a.weights.scalar_type());
  }
  if (want_x) run_reduce(s, plan, grad_hidden, 2 * s.I, matrices(a.w_in), nullptr, grad_x);
  if (want_in)
    run_grad_weight(s, plan, {matrix(grad_hidden), false}, {matrix(a.x), true}, grad_w_in);
  if (want_out)
    run_grad_weight(s, plan, {matrix(a.grad), true}, {matrix(activated), false}, grad_w_out);
  return {grad_x, grad_weights, grad_w_in, grad_w_out};
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, CPU, m) {
  using namespace fulgurite;
  m.impl("moe_experts", experts_from_schema<experts_cpu>);
  m.impl("_moe_experts_forward", experts_forward_cpu);
  m.impl("_moe_experts_backward", experts_backward_from_schema<experts_backward_cpu>);
}
