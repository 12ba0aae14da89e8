// The grouped product on the CPU, torch side.
#include "common/check.h"
#include "common/dtype.h"
#include "common/fresh.h"
#include "cpu/huge_pages.h"
#include "cpu/tasks.h"
#include "moe/check.h"
#include "moe/cpu/sorted.h"
#include "moe/plan.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <vector>

namespace fulgurite {

FULGURITE_KERNEL(moe_grouped_mm, moe_grouped_mm, GroupedTaskFn);
FULGURITE_KERNEL(moe_grouped_mm, moe_grouped_mm_layout, GroupedLayoutFn);

namespace {

/// offsets (E+1), rising from 0 to at most the number of rows.
std::vector<int64_t> read_offsets(const char* op, const Tensor& offsets, int64_t rows) {
  const Tensor dense = offsets.contiguous();
  const int64_t* const data = dense.const_data_ptr<int64_t>();
  const std::vector<int64_t> read(data, data + dense.numel());
  FULGURITE_CHECK(read[0] == 0, "expected offsets to start at 0, got ", read[0]);
  for (size_t e = 1; e < read.size(); ++e)
    FULGURITE_CHECK(read[e - 1] <= read[e] && read[e] <= rows,
                    "expected offsets to rise to at most ", rows, ", got ", read[e], " after ",
                    read[e - 1]);
  return read;
}

/// Rows of x times B (depth,N) of their expert, and its bias; rows that no expert has are 0.
void run_grouped(const std::vector<int64_t>& offsets, const Tensor& x, const ExpertMatrices& b,
                 const ExpertRows& bias, const Tensor& out) {
  const int64_t E = static_cast<int64_t>(offsets.size()) - 1, rows = offsets[E], N = out.size(1);
  if (rows < out.size(0)) out.narrow(0, rows, out.size(0) - rows).zero_();
  const std::vector<Segment> segments = segments_of(offsets.data(), E, kSegmentRows);
  GroupedParams p{};
  p.dtype = kernel_dtype(out.scalar_type());
  p.depth = x.size(1);
  p.N = N;
  p.segments = segments.data();
  p.x = stored_rows(x);
  p.b = b;
  p.bias = bias;
  p.out = out.mutable_data_ptr();
  const int64_t tasks = static_cast<int64_t>(segments.size()) * ceil_div(N, kGroupedColumns);
  run_kernel(moe_grouped_mm_kernel, moe_grouped_mm_layout_kernel, p, {tasks, rows * p.depth * N});
}

Tensor grouped_mm_cpu(const GroupedMmArgs& a) {
  const GroupedMmShape s = check_grouped_mm(a);
  const auto offsets = read_offsets("moe_grouped_mm", a.offsets, a.x.size(0));
  const Tensor out =
      on_huge_pages(at::empty({a.x.size(0), s.N.expect_int()}, a.x.options()));  // (rows,N)
  run_grouped(offsets, a.x, matrices(a.weight, !a.transposed), expert_rows(a.bias), out);
  return out;
}

GroupedMmGradients grouped_mm_backward_cpu(const GroupedMmBackwardArgs& a) {
  const GroupedMmShape s = check_grouped_mm_backward(a);
  const auto offsets = read_offsets("_moe_grouped_mm_backward", a.offsets, a.x.size(0));
  const auto [want_x, want_weight, want_bias] = a.output_mask;
  Tensor grad_x = on_huge_pages(fresh_gradient(want_x, a.x)),
         grad_weight = on_huge_pages(fresh_gradient(want_weight, a.weight));
  Tensor grad_bias = want_bias ? at::empty({s.E.expect_int(), s.N.expect_int()}, a.x.options())
                               : at::empty({0}, a.x.options());
  if (want_x) run_grouped(offsets, a.grad, matrices(a.weight, a.transposed), {}, grad_x);
  if (want_weight) {
    const SortedRows x = stored_rows(a.x), grad = stored_rows(a.grad);
    run_grad_weight(offsets.data(), a.transposed ? x : grad, a.transposed ? grad : x, grad_weight);
  }
  if (want_bias) run_grad_bias(offsets.data(), stored_rows(a.grad), nullptr, grad_bias);
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, CPU, m) {
  using namespace fulgurite;
  implement<grouped_mm_cpu>(m);
  implement<grouped_mm_backward_cpu>(m);
}
