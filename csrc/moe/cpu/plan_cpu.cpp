// Plan, permute and combine on the CPU, torch side.
#include "common/check.h"
#include "common/dtype.h"
#include "cpu/tasks.h"
#include "moe/check.h"
#include "moe/cpu/counting_sort.h"
#include "moe/cpu/drop.h"
#include "moe/cpu/tensors.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <vector>

namespace fulgurite {

FULGURITE_KERNEL(moe_combine, moe_permute, CombineTaskFn);
FULGURITE_KERNEL(moe_combine, moe_combine, CombineTaskFn);
FULGURITE_KERNEL(moe_combine, moe_combine_grad_y, CombineTaskFn);
FULGURITE_KERNEL(moe_combine, moe_combine_grad_weights, CombineTaskFn);

namespace {

PlanResult plan_cpu(const PlanArgs& args) {
  check_plan(args);
  const int64_t T = args.ids.size(0), K = args.ids.size(1), E = args.num_experts.expect_int();
  const auto options = args.ids.options().memory_format(at::MemoryFormat::Contiguous);
  Tensor permutation = at::empty({T * K}, options.dtype(at::kInt));  // (T·K)
  Tensor inverse = at::empty({T, K}, options.dtype(at::kInt));       // (T,K)
  Tensor offsets = at::empty({E + 1}, options.dtype(at::kLong));     // (E+1)
  const int64_t capacity = args.capacity.expect_int();
  const bool in_token_order = capacity < 0 || choice_of(kDrops, args.drop) == Drop::kToken;
  sort_by_expert(in_token_order ? args.ids : drop_overflow(args), E,
                 permutation.mutable_data_ptr<int32_t>(), inverse.mutable_data_ptr<int32_t>(),
                 offsets.mutable_data_ptr<int64_t>(), capacity < 0 ? T * K : capacity);
  return {permutation, inverse, offsets};
}

void run_rows(Kernel<CombineTaskFn>& kernel, const CombineParams& p, int64_t rows) {
  const int64_t per_task = rows_per_task(p.H);
  const auto fn = kernel.get(p.dtype);
  run_tasks(kernel, {ceil_div(rows, per_task), p.T * p.K * p.H, padded_row(p.H) * 8},
            [&](int64_t task, void* scratch) {
              fn(p, task * per_task, std::min(rows, (task + 1) * per_task), scratch);
            });
}

Tensor empty_like_contiguous(const Tensor& like, at::IntArrayRef sizes) {
  return at::empty(sizes, like.options().memory_format(at::MemoryFormat::Contiguous));
}

CombineParams common_params(const Tensor& rows, int64_t T, int64_t K) {
  CombineParams p{};
  p.dtype = kernel_dtype(rows.scalar_type());
  p.T = T;
  p.K = K;
  p.H = rows.size(1);
  return p;
}

Tensor permute_cpu(const PermuteArgs& args) {
  constexpr const char* op = "moe_permute";
  check_permute(args);
  const auto& [x, permutation, inverse] = args;
  const Tensor sorted = permutation.contiguous(), back = inverse.contiguous();
  CombineParams p = common_params(x, x.size(0), inverse.size(1));
  p.permutation = sorted.const_data_ptr<int32_t>();
  p.inverse = back.const_data_ptr<int32_t>();
  p.x = matrix(x);
  const int64_t n = p.T * p.K;
  for (int64_t row = 0; row < n; ++row)
    FULGURITE_CHECK(p.permutation[row] >= 0 && p.permutation[row] < n,
                    "expected permutation in [0, ", n, "), got ", p.permutation[row]);
  for (int64_t a = 0; a < n; ++a)
    FULGURITE_CHECK(p.inverse[a] == -1 ||
                        (p.inverse[a] >= 0 && p.inverse[a] < n && p.permutation[p.inverse[a]] == a),
                    "expected inverse to be permutation's inverse or -1, got ", p.inverse[a],
                    " for assignment ", a);
  Tensor out = empty_like_contiguous(x, {n, p.H});
  p.out = out.mutable_data_ptr();
  run_rows(moe_permute_kernel, p, n);
  return out;
}

/// The assignment of each row of y, −1 for none. Two assignments of one row would need their
/// gradients added.
std::vector<int32_t> row_owners(const char* op, const int32_t* inverse, int64_t n) {
  std::vector<int32_t> owner(static_cast<size_t>(n), -1);
  for (int64_t a = 0; a < n; ++a) {
    const int64_t row = inverse[a];
    FULGURITE_CHECK(row >= -1 && row < n, "expected inverse in [-1, ", n, "), got ", row);
    if (row < 0) continue;
    FULGURITE_CHECK(owner[row] < 0, "expected inverse to name each row once, got ", row, " twice");
    owner[row] = static_cast<int32_t>(a);
  }
  return owner;
}

Tensor accumulation_weights(const Tensor& weights, const Tensor& y) {
  return weights.to(accumulate_type(y.scalar_type())).contiguous();
}

Tensor combine_cpu(const CombineArgs& args) {
  check_combine(args);
  const auto& [y, inverse, weights] = args;
  const Tensor back = inverse.contiguous(),
               w = weights ? accumulation_weights(*weights, y) : Tensor();
  CombineParams p = common_params(y, inverse.size(0), inverse.size(1));
  p.inverse = back.const_data_ptr<int32_t>();
  row_owners("moe_combine", p.inverse, p.T * p.K);
  p.y = matrix(y);
  p.weights = weights ? w.const_data_ptr() : nullptr;
  Tensor out = empty_like_contiguous(y, {p.T, p.H});
  p.out = out.mutable_data_ptr();
  run_rows(moe_combine_kernel, p, p.T);
  return out;
}

std::tuple<Tensor, Tensor> combine_backward_cpu(const CombineBackwardArgs& args) {
  check_combine_backward(args);
  const auto& [y, inverse, weights] = args.forward;
  const Tensor back = inverse.contiguous(),
               w = weights ? accumulation_weights(*weights, y) : Tensor();
  CombineParams p = common_params(y, inverse.size(0), inverse.size(1));
  p.inverse = back.const_data_ptr<int32_t>();
  const std::vector<int32_t> owner = row_owners("_moe_combine_backward", p.inverse, p.T * p.K);
  p.owner = owner.data();
  p.y = matrix(y);
  p.weights = weights ? w.const_data_ptr() : nullptr;
  p.grad = matrix(args.grad);
  Tensor grad_y = empty_like_contiguous(y, args.output_mask[0] ? y.sizes() : at::IntArrayRef{0});
  if (args.output_mask[0]) {
    p.grad_y = grad_y.mutable_data_ptr();
    run_rows(moe_combine_grad_y_kernel, p, p.T * p.K);
  }
  if (!weights || !args.output_mask[1])
    return {grad_y, empty_like_contiguous(weights.value_or(y), {0})};
  Tensor grad_weights = empty_like_contiguous(w, {p.T, p.K});
  p.grad_weights = grad_weights.mutable_data_ptr();
  run_rows(moe_combine_grad_weights_kernel, p, p.T);
  return {grad_y, grad_weights.to(weights->scalar_type())};
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, CPU, m) {
  using namespace fulgurite;
  implement<plan_cpu>(m);
  implement<permute_cpu>(m);
  implement<combine_cpu>(m);
  implement<combine_backward_cpu>(m);
}
