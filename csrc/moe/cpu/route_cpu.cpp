// Routing on the CPU, torch side: tensors to RouteParams, outputs, tasks.
#include "common/check.h"
#include "common/dtype.h"
#include "cpu/tasks.h"
#include "moe/check.h"
#include "moe/cpu/tensors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cstring>
#include <limits>

namespace fulgurite {

FULGURITE_KERNEL(moe_route, moe_route, RouteTaskFn);
FULGURITE_KERNEL(moe_route, moe_route_backward, RouteTaskFn);
FULGURITE_KERNEL(moe_route, moe_route_layout, RouteLayoutFn);

namespace {

RouteParams common_params(const RouteShape& s, const Tensor& logits, std::string_view score,
                          bool renormalize, double eps, double scale) {
  RouteParams p{};
  p.dtype = kernel_dtype(logits.scalar_type());
  p.T = s.T.expect_int();
  p.E = s.E.expect_int();
  p.K = s.K.expect_int();
  p.score = choice_of(kScores, score);
  p.renormalize = renormalize;
  p.eps = eps;
  p.scale = scale;
  p.logits = matrix(logits);
  return p;
}

void run_rows(Kernel<RouteTaskFn>& kernel, const RouteParams& p) {
  const int64_t rows = rows_per_task(p.E);
  const auto fn = kernel.get(p.dtype);
  int64_t scratch_bytes = 0;
  moe_route_layout_kernel.get(p.dtype)(p, &scratch_bytes);
  run_tasks(kernel, {ceil_div(p.T, rows), p.T * p.E * kLogitCost, scratch_bytes},
            [&](int64_t task, void* scratch) {
              fn(p, task * rows, std::min(p.T, (task + 1) * rows), scratch);
            });
}

/// In the accumulation type, padded with zeros to whole groups.
Tensor padded_bias(const Tensor& bias, at::ScalarType dtype) {
  const Tensor dense = bias.to(dtype).contiguous();
  Tensor padded = at::empty({padded_row(bias.size(0))}, dense.options());
  char* const to = static_cast<char*>(padded.mutable_data_ptr());
  std::memcpy(to, dense.const_data_ptr(), dense.nbytes());
  std::memset(to + dense.nbytes(), 0, padded.nbytes() - dense.nbytes());
  return padded;
}

/// Given ids as int32. A sentinel that int32 cannot hold becomes E.
Tensor forced_int32(const Tensor& forced, int64_t E) {
  Tensor ids = at::empty(
      forced.sizes(), forced.options().dtype(at::kInt).memory_format(at::MemoryFormat::Contiguous));
  int32_t* to = ids.mutable_data_ptr<int32_t>();
  const Ids given(forced);
  for (int64_t t = 0; t < forced.size(0); ++t)
    for (int64_t j = 0; j < forced.size(1); ++j) {
      const int64_t id = given(t, j);
      *to++ = static_cast<int32_t>(id < std::numeric_limits<int32_t>::min() ||
                                           id > std::numeric_limits<int32_t>::max()
                                       ? E
                                       : id);
    }
  return ids;
}

RouteResult route_cpu(const RouteArgs& args) {
  const RouteShape s = check_route(args);
  RouteParams p = common_params(s, args.logits, args.score, args.renormalize, args.eps, args.scale);
  const at::ScalarType accumulate = accumulate_type(args.logits.scalar_type());
  p.n_group = args.n_group;
  p.topk_group = args.topk_group;
  p.group_score = choice_of(kGroupScores, args.group_score);
  Tensor bias, forced;
  if (args.bias) {
    bias = padded_bias(*args.bias, accumulate);
    p.bias = bias.const_data_ptr();
  }
  if (args.forced_ids) {
    forced = forced_int32(*args.forced_ids, p.E);
    p.forced = forced.const_data_ptr<int32_t>();
  }
  p.token_mask = mask_of(args.token_mask);
  Tensor weights = at::empty({p.T, p.K}, args.logits.options().dtype(accumulate));  // (T,K)
  Tensor ids = at::empty({p.T, p.K}, args.logits.options().dtype(at::kInt));        // (T,K)
  Tensor counts = at::zeros({p.E}, args.logits.options().dtype(at::kLong));         // (E)
  p.weights = weights.mutable_data_ptr();
  p.ids = ids.mutable_data_ptr<int32_t>();
  p.counts = counts.mutable_data_ptr<int64_t>();
  run_rows(moe_route_kernel, p);
  return {weights, ids, counts};
}

Tensor route_backward_cpu(const RouteBackwardArgs& args) {
  const RouteShape s = check_route_backward(args);
  if (!args.output_mask[0]) return at::empty({0}, args.logits.options());
  RouteParams p = common_params(s, args.logits, args.score, args.renormalize, args.eps, args.scale);
  p.grad_weights = matrix(args.grad_weights);
  p.chosen = matrix(args.ids);
  Tensor grad = at::empty(args.logits.sizes(),
                          args.logits.options().memory_format(at::MemoryFormat::Contiguous));
  p.grad_logits = grad.mutable_data_ptr();
  run_rows(moe_route_backward_kernel, p);
  return grad;
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, CPU, m) {
  using namespace fulgurite;
  implement<route_cpu>(m);
  implement<route_backward_cpu>(m);
}
