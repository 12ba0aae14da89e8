// The experts' feed-forward on the CPU, torch side.
#include "common/fresh.h"
#include "cpu/huge_pages.h"
#include "moe/cpu/experts_call.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

namespace fulgurite {
namespace {

/// y, and the hidden layer of every sorted row where `hidden` (T·K,width) is there.
Tensor forward(const ExpertSizes& s, const ExpertsArgs& a, const Tensor& hidden) {
  if (s.nothing()) return at::zeros(a.x.sizes(), contiguous_like(a.x));
  const Tensor y = on_huge_pages(fresh_like(a.x)), w = accumulation_weights(a);
  const SortedPlan plan(a.ids, s);
  const TokenSums sums(s, plan, y);
  HiddenParams p = hidden_params(s, a);
  const Tensor x = operands(p, plan.most_rows, s.H, a.x);
  const Tensor activated = operands(p, plan.most_rows, s.I, a.x);
  p.x = operand_rows(x);
  p.activated = activated.mutable_data_ptr();
  p.row_width = activated.size(1);
  for (const ExpertsPart& part : plan.parts) {
    set_part(p, part, a);
    p.hidden = hidden.defined() ? positions_of(part, hidden).mutable_data_ptr() : nullptr;
    gather_operands(p, part, s.K, a.x, x);
    run_hidden(p, part);
    sums.add(part, activated, s.I, matrices(experts_of(part, a.w_out), !a.transposed), p.b_out,
             w.const_data_ptr());
  }
  if (hidden.defined() && plan.rows < hidden.size(0))
    hidden.narrow(0, plan.rows, hidden.size(0) - plan.rows).zero_();
  return y;
}

Tensor experts_cpu(const ExpertsArgs& a) {
  return forward(expert_sizes(check_experts(a)), a, Tensor());
}

std::tuple<Tensor, Tensor> experts_forward_cpu(const ExpertsForwardArgs& a) {
  const ExpertSizes s = expert_sizes(check_experts(a));
  const auto options = contiguous_like(a.x).dtype(accumulate_type(a.x.scalar_type()));
  const Tensor hidden = s.nothing() ? at::zeros({s.T * s.K, s.width}, options)
                                    : on_huge_pages(at::empty({s.T * s.K, s.width}, options));
  return {forward(s, a, hidden), hidden};
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, CPU, m) {
  using namespace fulgurite;
  implement<experts_cpu>(m);
  implement<experts_forward_cpu>(m);
}
