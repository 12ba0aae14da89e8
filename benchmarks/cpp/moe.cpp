// A layer of experts with the same number of tokens for each: routing, sorting rows, the hidden layer, sums per token, gradients.
#include "bench.h"
#include "common/ceil_div.h"
#include "moe/cpu/kernels/experts_params.h"
#include "moe/cpu/kernels/params.h"
#include "moe/plan.h"

namespace fulgurite {

FULGURITE_KERNEL(moe_route, moe_route, RouteTaskFn);
FULGURITE_KERNEL(moe_route, moe_route_layout, RouteLayoutFn);
FULGURITE_KERNEL(moe_combine, moe_combine, CombineTaskFn);
FULGURITE_KERNEL(moe_experts_gather, moe_experts_gather, GatherTaskFn);
FULGURITE_KERNEL(moe_experts_hidden, moe_experts_hidden, HiddenTaskFn);
FULGURITE_KERNEL(moe_experts_hidden, moe_experts_grad_hidden, HiddenTaskFn);
FULGURITE_KERNEL(moe_experts_hidden, moe_experts_hidden_layout, HiddenLayoutFn);
FULGURITE_KERNEL(moe_experts_products, moe_experts_reduce, ReduceTaskFn);
FULGURITE_KERNEL(moe_experts_products, moe_experts_reduce_layout, ReduceLayoutFn);
FULGURITE_KERNEL(moe_experts_products, moe_experts_grad_weight, GradWeightTaskFn);
FULGURITE_KERNEL(moe_experts_products, moe_experts_grad_weight_layout, GradWeightLayoutFn);
FULGURITE_KERNEL(moe_grouped_mm, moe_grouped_mm, GroupedTaskFn);
FULGURITE_KERNEL(moe_grouped_mm, moe_grouped_mm_layout, GroupedLayoutFn);

namespace {

using bench::Memory;

std::string text(const ExpertSizes& s) {
  return "T " + std::to_string(s.T) + ", E " + std::to_string(s.E) + ", k " + std::to_string(s.K) +
         ", H " + std::to_string(s.H) + ", I " + std::to_string(s.I);
}

/// Rows as operands: a line more than they need, so that rows do not fall on the same sets of a cache.
struct Operands {
  int64_t width;
  Memory memory;

  Operands(const HiddenLayout& layout, int64_t rows, int64_t columns)
      : width((ceil_div(columns, 64 / layout.operand_bytes) + 1) * (64 / layout.operand_bytes)),
        memory(rows * width * layout.operand_bytes) {}
  SortedRows rows() const { return {{memory.data(), width, 1}, nullptr, 1, true}; }
};

/// Assignment a goes to expert a mod E.
struct Experts : ExpertSizes {
  int64_t rows;
  Dtype dtype, accumulated;
  std::vector<int32_t> permutation, inverse;
  std::vector<int64_t> offsets;
  std::vector<Segment> segments;
  Memory x, grad, w_in, w_out, weights;

  Experts(Dtype dtype, const ExpertSizes& s)
      : ExpertSizes(s),
        rows(T * K),
        dtype(dtype),
        accumulated(bench::accumulate(dtype)),
        inverse(static_cast<size_t>(T * K)),
        x(dtype, T * H),
        grad(dtype, T * H),
        w_in(dtype, E * 2 * I * H),
        w_out(dtype, E * H * I),
        weights(accumulated, T * K) {
    for (int64_t e = 0; e < E; ++e) {
      offsets.push_back(static_cast<int64_t>(permutation.size()));
      for (int64_t a = e; a < rows; a += E) {
        inverse[static_cast<size_t>(a)] = static_cast<int32_t>(permutation.size());
        permutation.push_back(static_cast<int32_t>(a));
      }
    }
    offsets.push_back(rows);
    segments = segments_of(offsets.data(), E, kSegmentRows);
  }
  SortedRows gathered(const Memory& tokens) const {
    return {{tokens.data(), H, 1}, permutation.data(), K, false};
  }
  int64_t tasks(int64_t columns, int64_t of_a_task) const {
    return static_cast<int64_t>(segments.size()) * ceil_div(columns, of_a_task);
  }
  /// A product of every row with a matrix.
  double product(int64_t depth, int64_t columns) const {
    return 2.0 * static_cast<double>(rows * depth * columns);
  }
};

/// The hidden layer's operands and results.
class Hidden {
 public:
  HiddenParams p{};
  HiddenLayout layout{};

  explicit Hidden(const Experts& e)
      : p(params(e)),
        layout(layout_of(p)),
        x(layout, e.rows, e.H),
        grad(layout, e.rows, e.H),
        activated(layout, e.rows, e.I),
        grad_hidden(layout, e.rows, 2 * e.I),
        hidden_(bench::bytes_of(e.accumulated) * e.rows * 2 * e.I),
        dots_(bench::bytes_of(e.accumulated) * e.rows * ceil_div(e.I, kHiddenBlock)) {
    p.x = x.rows();
    p.grad = grad.rows();
    p.activated = activated.memory.data();
    p.row_width = activated.width;
    p.grad_hidden = grad_hidden.memory.data();
    p.grad_width = grad_hidden.width;
    p.hidden = hidden_.data();
    p.weights = e.weights.data();
    p.need_grad = true;
    p.dots = dots_.data();
    p.dot_parts = ceil_div(e.I, kHiddenBlock);
  }

 private:
  static HiddenParams params(const Experts& e) {
    HiddenParams p{};
    p.dtype = e.dtype;
    p.H = e.H;
    p.I = e.I;
    p.gated = true;
    p.segments = e.segments.data();
    p.permutation = e.permutation.data();
    p.w_in = {e.w_in.data(), 2 * e.I * e.H, e.H, 1};
    p.w_out = {e.w_out.data(), e.H * e.I, e.I, 1};
    return p;
  }
  static HiddenLayout layout_of(const HiddenParams& p) {
    HiddenLayout layout{};
    moe_experts_hidden_layout_kernel.get(p.dtype)(p, &layout);
    return layout;
  }

 public:
  Operands x, grad, activated, grad_hidden;

 private:
  Memory hidden_, dots_;
};

void measure_hidden(bench::Bench& bench, const Experts& e, Hidden& h) {
  const HiddenParams& p = h.p;
  const auto gather = moe_experts_gather_kernel.get(e.dtype);
  const auto gather_into = [&](const Memory& tokens, Operands& to) {
    gather({e.dtype, e.H, e.gathered(tokens), to.memory.data(), to.width}, 0, e.rows);
  };
  gather_into(e.grad, h.grad);
  bench.time(moe_experts_gather_kernel, e.dtype, text(e),
             bench::bytes(static_cast<double>(e.rows * e.H *
                                              (bench::bytes_of(e.dtype) + h.layout.operand_bytes))),
             [&] { gather_into(e.x, h.x); });
  gather_into(e.x, h.x);
  const Memory scratch(h.layout.hidden), of_gradients(h.layout.grad_hidden);
  const auto hidden = moe_experts_hidden_kernel.get(e.dtype);
  const auto forward = [&] { bench::run_tasks(hidden, p, e.tasks(e.I, kHiddenBlock), scratch); };
  forward();
  bench.time(moe_experts_hidden_kernel, e.dtype, text(e), bench::flops(e.product(e.H, 2 * e.I)),
             forward);
  const auto grad_hidden = moe_experts_grad_hidden_kernel.get(e.dtype);
  const auto backward = [&] {
    bench::run_tasks(grad_hidden, p, e.tasks(e.I, kHiddenBlock), of_gradients);
  };
  backward();
  bench.time(moe_experts_grad_hidden_kernel, e.dtype, text(e), bench::flops(e.product(e.H, e.I)),
             backward);
}

/// Sums per token of the hidden layer's rows, as the forward makes them.
void measure_reduce(bench::Bench& bench, const Experts& e, const Hidden& h) {
  const Memory out(bench::bytes_of(e.dtype) * e.T * e.H);
  ReduceParams p{};
  p.dtype = e.dtype;
  p.T = e.T;
  p.K = e.K;
  p.E = e.E;
  p.H = e.H;
  p.depth = e.I;
  p.row_width = h.activated.width;
  p.token_range = tokens_per_task(e, 256, 4096);
  p.permutation = e.permutation.data();
  p.offsets = e.offsets.data();
  p.rows = h.activated.memory.data();
  p.b = {e.w_out.data(), e.H * e.I, 1, e.I};
  p.weights = e.weights.data();
  p.out = out.data();
  int64_t bytes = 0;
  moe_experts_reduce_layout_kernel.get(e.dtype)(p, &bytes);
  const Memory scratch(bytes);
  const auto reduce = moe_experts_reduce_kernel.get(e.dtype);
  const int64_t tasks = ceil_div(e.T, p.token_range) * ceil_div(e.H, kHiddenBlock);
  bench.time(moe_experts_reduce_kernel, e.dtype, text(e), bench::flops(e.product(e.I, e.H)),
             [&] { bench::run_tasks(reduce, p, tasks, scratch); });
}

void measure_grad_weight(bench::Bench& bench, const Experts& e, const Hidden& h) {
  const Memory grad(bench::bytes_of(e.dtype) * e.E * 2 * e.I * e.H);
  GradWeightParams p{};
  p.dtype = e.dtype;
  p.M = 2 * e.I;
  p.N = e.H;
  p.offsets = e.offsets.data();
  p.a = h.grad_hidden.rows();
  p.b = e.gathered(e.x);
  p.grad = grad.data();
  int64_t bytes = 0;
  moe_experts_grad_weight_layout_kernel.get(e.dtype)(p, &bytes);
  const Memory scratch(bytes);
  const auto grad_weight = moe_experts_grad_weight_kernel.get(e.dtype);
  const int64_t tasks = e.E * ceil_div(p.M, kGradRows) * ceil_div(p.N, kGradColumns);
  bench.time(moe_experts_grad_weight_kernel, e.dtype, text(e),
             bench::flops(e.product(e.H, 2 * e.I)),
             [&] { bench::run_tasks(grad_weight, p, tasks, scratch); });
}

/// Rows of e.H numbers that stand sorted, times (e.H,e.I) of their expert.
void measure_grouped(bench::Bench& bench, const Experts& e) {
  const Memory rows(e.dtype, e.rows * e.H), out(bench::bytes_of(e.dtype) * e.rows * e.I);
  GroupedParams p{};
  p.dtype = e.dtype;
  p.depth = e.H;
  p.N = e.I;
  p.segments = e.segments.data();
  p.x = {{rows.data(), e.H, 1}, nullptr, 1, false};
  p.b = {e.w_out.data(), e.H * e.I, e.I, 1};
  p.out = out.data();
  int64_t bytes = 0;
  moe_grouped_mm_layout_kernel.get(e.dtype)(p, &bytes);
  const Memory scratch(bytes);
  const auto grouped = moe_grouped_mm_kernel.get(e.dtype);
  bench.time(moe_grouped_mm_kernel, e.dtype, text(e), bench::flops(e.product(e.H, e.I)),
             [&] { bench::run_tasks(grouped, p, e.tasks(e.I, kGroupedColumns), scratch); });
}

void measure_route(bench::Bench& bench, const Experts& e) {
  const Memory logits(e.dtype, e.T * e.E), weights(bench::bytes_of(e.accumulated) * e.rows);
  std::vector<int32_t> ids(static_cast<size_t>(e.rows));
  std::vector<int64_t> counts(static_cast<size_t>(e.E));
  RouteParams p{};
  p.dtype = e.dtype;
  p.T = e.T;
  p.E = e.E;
  p.K = e.K;
  p.n_group = p.topk_group = 1;
  p.renormalize = true;
  p.scale = 1;
  p.logits = {logits.data(), e.E, 1};
  p.weights = weights.data();
  p.ids = ids.data();
  p.counts = counts.data();
  int64_t bytes = 0;
  moe_route_layout_kernel.get(e.dtype)(p, &bytes);
  const Memory scratch(bytes);
  const auto route = moe_route_kernel.get(e.dtype);
  bench.time(moe_route_kernel, e.dtype, text(e),
             bench::bytes(static_cast<double>(e.T * e.E * bench::bytes_of(e.dtype))),
             [&] { route(p, 0, e.T, scratch.data()); });
}

void measure_combine(bench::Bench& bench, const Experts& e) {
  const int64_t size = bench::bytes_of(e.dtype);
  const Memory rows(e.dtype, e.rows * e.H), out(size * e.T * e.H);
  CombineParams p{};
  p.dtype = e.dtype;
  p.T = e.T;
  p.K = e.K;
  p.H = e.H;
  p.inverse = e.inverse.data();
  p.y = {rows.data(), e.H, 1};
  p.weights = e.weights.data();
  p.out = out.data();
  const Memory scratch(padded_row(e.H) * 8);
  const auto combine = moe_combine_kernel.get(e.dtype);
  bench.time(moe_combine_kernel, e.dtype, text(e),
             bench::bytes(static_cast<double>((e.rows + e.T) * e.H * size)),
             [&] { combine(p, 0, e.T, scratch.data()); });
}

void measure(bench::Bench& bench, Dtype dtype, const ExpertSizes& s) {
  if (!bench.wants(
          {&moe_route_kernel, &moe_combine_kernel, &moe_experts_gather_kernel,
           &moe_experts_hidden_kernel, &moe_experts_grad_hidden_kernel, &moe_experts_reduce_kernel,
           &moe_experts_grad_weight_kernel, &moe_grouped_mm_kernel},
          dtype, text(s)))
    return;
  const Experts experts(dtype, s);
  measure_route(bench, experts);
  measure_combine(bench, experts);
  measure_grouped(bench, experts);
  Hidden hidden(experts);
  measure_hidden(bench, experts, hidden);
  measure_reduce(bench, experts, hidden);
  measure_grad_weight(bench, experts, hidden);
}

}  // namespace
}  // namespace fulgurite

int main(int argc, char** argv) {
  using namespace fulgurite;
  bench::Bench bench(argc, argv);
  bench.for_sets([&] {
    for (const Dtype dtype : {Dtype::kFloat64, Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16})
      for (const ExpertSizes& s : bench.shapes<ExpertSizes>(
               {{16, 2, 4, 64, 64, 128}, {64, 4, 16, 512, 256, 512}, {1024, 4, 16, 512, 256, 512}}))
        measure(bench, dtype, s);
  });
  return bench.finish();
}
