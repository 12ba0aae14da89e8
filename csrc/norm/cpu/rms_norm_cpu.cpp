// rms_norm on the CPU, torch side.
#include "common/dtype.h"
#include "common/fresh.h"
#include "common/walk.h"
#include "cpu/huge_pages.h"
#include "cpu/tasks.h"
#include "norm/check.h"
#include "norm/cpu/kernels/params.h"

#include <torch/library.h>

#include <limits>

namespace fulgurite {

FULGURITE_KERNEL(norm_rms_norm, rms_norm, RmsNormTaskFn);
FULGURITE_KERNEL(norm_rms_norm, rms_norm_layout, RmsNormLayoutFn);
FULGURITE_KERNEL(norm_rms_norm_backward, rms_norm_backward, RmsNormBackwardTaskFn);
FULGURITE_KERNEL(norm_rms_norm_backward, rms_norm_backward_layout, RmsNormBackwardLayoutFn);
FULGURITE_KERNEL(norm_rms_norm_backward, rms_norm_sums, RmsNormSumsFn);

namespace {

using RowWalk = WalkList<2>;

/// Where the rows of x, and of grad_out if it is given, begin, in the order of their indices. There are elements.
RowWalk row_walk(const Tensor& x, const Tensor* grad_out) {
  RowWalk walk(WalkOrder::kLogical);
  const Tensor x_starts = x.select(-1, 0);
  if (grad_out) {
    const Tensor grad_starts = grad_out->select(-1, 0);
    walk.add({&x_starts, &grad_starts});
  } else {
    walk.add({&x_starts, nullptr});
  }
  return walk;
}

void describe(RmsNormProblem& p, const RmsNormArgs& args, const RowWalk& walk) {
  const Tensor& x = args.x;
  p.dtype = kernel_dtype(x.scalar_type());
  p.H = x.size(-1);
  p.rows = x.numel() / p.H;
  p.eps = args.eps;
  p.weight_shift = args.weight_shift;
  p.walk = walk.walks()[0];
  p.layouts = walk.layouts();
  p.x = x.const_data_ptr();
  p.x_stride = x.stride(-1);
  if (!args.weight) return;
  p.weight_dtype = kernel_dtype(args.weight->scalar_type());
  p.weight = args.weight->const_data_ptr();
  p.weight_stride = args.weight->stride(0);
}

/// `rstd` is written where it is given.
Tensor normalise(const RmsNormArgs& args, const Tensor* rstd) {
  const Tensor& x = args.x;
  Tensor out = on_huge_pages(fresh_like(x));
  if (x.numel() == 0) {
    if (rstd) rstd->fill_(std::numeric_limits<double>::quiet_NaN());  // of a mean of nothing
    return out;
  }
  RmsNormParams p{};
  const RowWalk walk = row_walk(x, nullptr);
  describe(p, args, walk);
  p.rows_per_task = rms_norm_rows_per_task(p.H);
  p.out = out.mutable_data_ptr();
  if (rstd) p.rstd = rstd->mutable_data_ptr();
  run_kernel(rms_norm_kernel, rms_norm_layout_kernel, p,
             {ceil_div(p.rows, p.rows_per_task), 4 * x.numel()});
  return out;
}

Tensor rms_norm_cpu(const RmsNormArgs& args) {
  check_rms_norm(args);
  return normalise(args, nullptr);
}

RmsNormForwardArgs::Result rms_norm_forward_cpu(const RmsNormForwardArgs& args) {
  check_rms_norm(args);
  const Tensor rstd = at::empty_symint(rstd_sizes(args.x), accumulate_options(args.x));
  return {normalise(args, &rstd), rstd};
}

RmsNormBackwardArgs::Result rms_norm_backward_cpu(const RmsNormBackwardArgs& args) {
  check_rms_norm_backward(args);
  const RmsNormArgs& f = args.forward;
  const bool wants_x = args.output_mask[kNormX], wants_weight = args.output_mask[kNormWeight];
  Tensor grad_x = on_huge_pages(fresh_gradient(wants_x, f.x)),
         grad_weight = fresh_gradient(wants_weight, f.weight, f.x);
  if (f.x.numel() == 0 || !(wants_x || wants_weight)) return {grad_x, grad_weight.zero_()};
  const RowWalk walk = row_walk(f.x, &args.grad_out);
  const Tensor rstd = args.rstd.contiguous();
  RmsNormBackwardParams p{};
  describe(p, f, walk);
  p.rows_per_block = rms_norm_rows_per_block(p.H, p.rows);
  p.grad_out = args.grad_out.const_data_ptr();
  p.grad_out_stride = args.grad_out.stride(-1);
  p.rstd = rstd.const_data_ptr();
  if (wants_x) p.grad_x = grad_x.mutable_data_ptr();
  const int64_t blocks = ceil_div(p.rows, p.rows_per_block);
  Tensor sums;
  if (wants_weight) {
    sums = at::empty({blocks, rms_norm_padded(p.H)}, accumulate_options(f.x));
    p.sums = sums.mutable_data_ptr();
    p.grad_weight = grad_weight.mutable_data_ptr();
  }
  run_kernel(rms_norm_backward_kernel, rms_norm_backward_layout_kernel, p,
             {blocks, 8 * f.x.numel()});
  if (wants_weight) run_rows(rms_norm_sums_kernel, p, p.H, /*per_task=*/64, sums.numel());
  return {grad_x, grad_weight};
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, CPU, m) {
  using namespace fulgurite;
  implement<rms_norm_cpu>(m);
  implement<rms_norm_forward_cpu>(m);
  implement<rms_norm_backward_cpu>(m);
}
