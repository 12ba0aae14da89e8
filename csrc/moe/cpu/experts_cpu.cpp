// The experts' feed-forward on the CPU, torch side: plan, workspace, tasks.
#include "common/check.h"
#include "common/dtype.h"
#include "common/fresh.h"
#include "common/tasks.h"
#include "moe/check.h"
#include "moe/cpu/plan.h"
#include "moe/cpu/sorted.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

namespace fulgurite {

FULGURITE_KERNEL(moe_experts_hidden, moe_experts_hidden, HiddenTaskFn);
FULGURITE_KERNEL(moe_experts_hidden, moe_experts_grad_hidden, HiddenTaskFn);
FULGURITE_KERNEL(moe_experts_hidden, moe_experts_hidden_layout, HiddenLayoutFn);
FULGURITE_KERNEL(moe_experts_products, moe_experts_reduce, ReduceTaskFn);
FULGURITE_KERNEL(moe_experts_products, moe_experts_reduce_layout, ReduceLayoutFn);
FULGURITE_KERNEL(moe_experts_bias, moe_experts_bias_dots, HiddenTaskFn);

namespace {

struct Sizes {
  int64_t T, K, E, H, I, width;

  explicit Sizes(const ExpertsShape& s)
      : T(s.T.expect_int()),
        K(s.K.expect_int()),
        E(s.E.expect_int()),
        H(s.H.expect_int()),
        I(s.I.expect_int()),
        width(s.width.expect_int()) {}
  /// Nothing to compute: every result and every gradient is 0.
  bool nothing() const { return T == 0 || K == 0 || E == 0 || H == 0; }
  int64_t products() const { return T * K * H * I; }
};

Activation parse_activation(std::string_view name) {
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "relu") return Activation::kRelu;
  return name == "relu2" ? Activation::kRelu2 : Activation::kSwigluOai;
}

at::TensorOptions contiguous_like(const Tensor& like) {
  return like.options().memory_format(at::MemoryFormat::Contiguous);
}

/// Assignments sorted by expert, and those of each expert cut into segments.
struct SortedPlan {
  Tensor permutation;            // (T·K)
  std::vector<int64_t> offsets;  // (E+1)
  std::vector<Segment> segments;

  SortedPlan(const Tensor& ids, const Sizes& s)
      : permutation(at::empty({s.T * s.K}, contiguous_like(ids).dtype(at::kInt))),
        offsets(s.E + 1) {
    make_plan(ids, s.E, permutation.mutable_data_ptr<int32_t>(), nullptr, offsets.data());
    segments = segments_of(offsets.data(), s.E);
  }
  /// Assignments that have an expert.
  int64_t rows() const { return offsets.back(); }
  const int32_t* assignments() const { return permutation.const_data_ptr<int32_t>(); }
  /// Rows of (T, …), sorted.
  SortedRows gathered(const Tensor& rows, const Sizes& s) const {
    return {matrix(rows), assignments(), s.K, false};
  }
};

HiddenParams hidden_params(const Sizes& s, const SortedPlan& plan, const ExpertsArgs& a) {
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
  p.x = plan.gathered(a.x, s);
  p.w_in = matrices(a.w_in, a.transposed);
  p.w_out = matrices(a.w_out, a.transposed);
  p.b_in = expert_rows(a.b_in);
  p.b_out = expert_rows(a.b_out);
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

/// out (T,H) from rows of operands (T·K, depth and padding), b (depth,H) and bias (H) for each expert.
void run_reduce(const Sizes& s, const SortedPlan& plan, const Tensor& rows, int64_t depth,
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
  int64_t scratch = 0;
  moe_experts_reduce_layout_kernel.get(p.dtype)(p, &scratch);
  run_kernel(moe_experts_reduce_kernel, p,
             {ceil_div(s.T, p.token_range) * ceil_div(s.H, kHiddenBlock), s.products(), scratch});
}

/// (T,K) in the accumulation type.
Tensor accumulation_weights(const ExpertsArgs& a) {
  return a.weights.to(accumulate_type(a.x.scalar_type())).contiguous();
}

/// y, and the hidden layer of every sorted row where `hidden` (T·K,width) is there.
Tensor forward(const Sizes& s, const ExpertsArgs& a, const Tensor& hidden) {
  if (s.nothing()) return at::zeros(a.x.sizes(), contiguous_like(a.x));
  Tensor y = fresh_like(a.x);
  const SortedPlan plan(a.ids, s);
  const Tensor w = accumulation_weights(a);
  HiddenParams p = hidden_params(s, plan, a);
  const Tensor activated = operands(p, s.T * s.K, s.I, a.x);
  p.activated = activated.mutable_data_ptr();
  p.row_width = activated.size(1);
  p.hidden = hidden.defined() ? hidden.mutable_data_ptr() : nullptr;
  run_hidden(moe_experts_hidden_kernel, p, s, plan, &HiddenLayout::hidden);
  if (hidden.defined() && plan.rows() < hidden.size(0))
    hidden.narrow(0, plan.rows(), hidden.size(0) - plan.rows()).zero_();
  run_reduce(s, plan, activated, s.I, matrices(a.w_out, !a.transposed), p.b_out, w.const_data_ptr(),
             y);
  return y;
}

Tensor experts_cpu(const ExpertsArgs& a) {
  return forward(Sizes(check_experts("moe_experts", a)), a, Tensor());
}

std::tuple<Tensor, Tensor> experts_forward_cpu(const ExpertsArgs& a) {
  const Sizes s(check_experts("_moe_experts_forward", a));
  const auto options = contiguous_like(a.x).dtype(accumulate_type(a.x.scalar_type()));
  const Tensor hidden = s.nothing() ? at::zeros({s.T * s.K, s.width}, options)
                                    : at::empty({s.T * s.K, s.width}, options);
  return {forward(s, a, hidden), hidden};
}

// ---- backward

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
  Sizes s;
  SortedPlan plan;
  Tensor weights;  // (T,K) of the accumulation type
  HiddenParams params;
  Tensor hidden;       // (T·K,width)
  Tensor grad_hidden;  // (T·K,width) operands
  Tensor activated;    // (T·K,I) operands: w·h
  Tensor dots;         // (T·K,parts)

  Backward(const ExpertsBackwardArgs& a, const Sizes& sizes)
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
    p.grad = plan.gathered(a.grad, s);
    p.weights = weights.const_data_ptr();
    p.activated = want_out ? activated.mutable_data_ptr() : nullptr;
    p.row_width = activated.size(1);
    p.grad_hidden = grad_hidden.mutable_data_ptr();
    p.grad_width = grad_hidden.size(1);
    p.dots = dots.mutable_data_ptr();
    p.dot_parts = dots.size(1);
    if (p.need_grad || want_out)
      run_hidden(moe_experts_grad_hidden_kernel, p, s, plan, &HiddenLayout::grad_hidden);
    if (want_weights && p.b_out.data)
      run_kernel(moe_experts_bias_dots_kernel, p,
                 {static_cast<int64_t>(plan.segments.size()), rows * s.H});
  }

  void find_hidden(const ExpertsBackwardArgs& a) {
    if (a.hidden) {
      hidden = a.hidden->contiguous();
      params.hidden = const_cast<void*>(hidden.const_data_ptr());  // read only by the backward
    } else {
      hidden = at::empty({s.T * s.K, s.width}, contiguous_like(weights));
      params.hidden = hidden.mutable_data_ptr();
      run_hidden(moe_experts_hidden_kernel, params, s, plan, &HiddenLayout::hidden);
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
  const Sizes s(check_experts_backward(a));
  const ExpertsArgs& f = a.forward;
  const auto zeros = [](at::IntArrayRef sizes, const auto& options) {
    return at::zeros(sizes, options);
  };
  const auto empty = [](at::IntArrayRef sizes, const auto& options) {
    return at::empty(sizes, options);
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
  m.impl("moe_experts", experts_from_schema<experts_cpu>);
  m.impl("_moe_experts_forward", experts_forward_from_schema<experts_forward_cpu>);
  m.impl("_moe_experts_backward", experts_backward_from_schema<experts_backward_cpu>);
}
