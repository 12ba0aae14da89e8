// Merging on the CPU, torch side.
#include "attention/cpu/kernels/merge.h"
#include "attention/merge.h"
#include "common/dtype.h"
#include "common/fresh.h"
#include "cpu/tasks.h"

#include <torch/library.h>

namespace fulgurite {

FULGURITE_KERNEL(attention_merge, attention_merge, MergeFn);
FULGURITE_KERNEL(attention_merge, attention_merge_backward, MergeFn);

namespace {

/// Contiguous tensors and their data.
struct Partials {
  std::vector<Tensor> tensors;
  std::vector<const void*> data;

  explicit Partials(TensorList list) {
    for (const Tensor& tensor : list) {
      tensors.push_back(tensor.contiguous());
      data.push_back(tensors.back().const_data_ptr());
    }
  }
};

MergeParams merge_params(TensorList outs, TensorList lses, const Partials& contiguous_outs,
                         const Partials& contiguous_lses) {
  MergeParams p{};
  p.dtype = kernel_dtype(outs[0].scalar_type());
  p.R = static_cast<int64_t>(outs.size());
  p.rows = lses[0].numel();
  p.D = outs[0].size(-1);
  p.outs = contiguous_outs.data.data();
  p.lses = contiguous_lses.data.data();
  return p;
}

void run(Kernel<MergeFn>& kernel, const MergeParams& p) {
  const int64_t per_task = std::max<int64_t>(1, 16384 / (p.R * (p.D + 1)));
  run_rows(kernel, p, p.rows, per_task, p.rows * (p.D + 1) * p.R);
}

AttentionResult merge_cpu(const MergeArgs& args) {
  check_merge(args);
  const TensorList outs = args.outs, lses = args.lses;
  const Partials contiguous_outs(outs), contiguous_lses(lses);
  MergeParams p = merge_params(outs, lses, contiguous_outs, contiguous_lses);
  Tensor out = fresh_like(outs[0]), lse = fresh_like(lses[0]);
  p.out = out.mutable_data_ptr();
  p.lse = lse.mutable_data_ptr();
  run(attention_merge_kernel, p);
  return {out, lse};
}

MergeGradients merge_backward_cpu(const MergeBackwardArgs& args) {
  check_merge_backward(args);
  const auto& [grad_out, grad_lse, outs, lses, lse, output_mask] = args;
  const Partials contiguous_outs(outs), contiguous_lses(lses);
  MergeParams p = merge_params(outs, lses, contiguous_outs, contiguous_lses);
  const Tensor out_rows = grad_out ? grad_out->contiguous() : Tensor(),
               lse_rows = grad_lse ? grad_lse->contiguous() : Tensor();
  if (grad_out) p.grad_out = out_rows.const_data_ptr();
  if (grad_lse) p.grad_lse = lse_rows.const_data_ptr();
  MergeGradients grads;
  auto& [grad_outs, grad_lses] = grads;
  std::vector<void*> out_places, lse_places;
  const auto add = [](std::vector<Tensor>& tensors, std::vector<void*>& places, const Tensor& input,
                      bool wanted) {
    tensors.push_back(fresh_gradient(wanted, input));
    places.push_back(wanted ? tensors.back().mutable_data_ptr() : nullptr);
  };
  for (size_t r = 0; r < outs.size(); ++r) {
    add(grad_outs, out_places, outs[r], output_mask[r]);
    add(grad_lses, lse_places, lses[r], output_mask[outs.size() + r]);
  }
  p.grad_outs = out_places.data();
  p.grad_lses = lse_places.data();
  run(attention_merge_backward_kernel, p);
  return grads;
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, CPU, m) {
  fulgurite::implement<fulgurite::merge_cpu>(m);
  fulgurite::implement<fulgurite::merge_backward_cpu>(m);
}
