// Attention on the CPU, torch side: tensors to Params, outputs and workspace, tasks.
#include "attention/check.h"
#include "attention/cpu/params.h"
#include "common/check.h"
#include "common/dtype.h"
#include "common/tasks.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace fulgurite {

FULGURITE_KERNEL(attention_forward, attention_pack, AttentionTaskFn);
FULGURITE_KERNEL(attention_forward, attention_forward, AttentionTaskFn);
FULGURITE_KERNEL(attention_forward, attention_forward_layout, AttentionLayoutFn);
FULGURITE_KERNEL(attention_backward, attention_grad_key_value, AttentionTaskFn);
FULGURITE_KERNEL(attention_backward, attention_grad_query, AttentionTaskFn);
FULGURITE_KERNEL(attention_backward, attention_backward_layout, AttentionLayoutFn);

namespace {

int64_t blocks(int64_t n, int64_t block) { return (n + block - 1) / block; }

/// A tensor of up to four dimensions, right-aligned; broadcast dimensions get stride 0.
Tensor4 tensor4(const OptionalTensor& tensor) {
  Tensor4 t{nullptr, {0, 0, 0, 0}};
  if (!tensor) return t;
  t.data = tensor->const_data_ptr();
  for (int64_t d = 0; d < tensor->dim(); ++d) t.strides[4 - tensor->dim() + d] = tensor->size(d) == 1 ? 0 : tensor->stride(d);
  return t;
}

/// lse and its gradient: (B,Hq,N) with a last dimension that is not there.
Tensor4 tensor3(const OptionalTensor& tensor) {
  return tensor ? Tensor4{tensor->const_data_ptr(), {tensor->stride(0), tensor->stride(1), tensor->stride(2), 0}} : Tensor4{nullptr, {0, 0, 0, 0}};
}

ScoreRule score_rule(const AttentionShape& s, const OptionalTensor& mask, bool causal, std::string_view align, int64_t window_left, int64_t window_right) {
  const int64_t N = s.N.expect_int(), M = s.M.expect_int(), widest = N + M;
  const Tensor4 m = tensor4(mask);
  return {M,
          align == "bottom_right" ? M - N : 0,
          causal,
          std::min(window_left, widest),
          std::min(window_right, widest),
          static_cast<const bool*>(m.data),
          mask && mask->dim() == 4 ? mask->size(0) : 1,
          {m.strides[0], m.strides[1], m.strides[2], m.strides[3]}};
}

AttentionParams common_params(const AttentionShape& s, const Tensor& query, const Tensor& key, const Tensor& value, double scale, const ScoreRule& rule) {
  AttentionParams p{};
  p.dtype = kernel_dtype(query.scalar_type());
  p.B = s.B.expect_int();
  p.Hq = s.Hq.expect_int();
  p.Hkv = s.Hkv.expect_int();
  p.group = p.Hkv ? p.Hq / p.Hkv : 0;
  p.N = s.N.expect_int();
  p.M = s.M.expect_int();
  p.D = s.D.expect_int();
  p.Dv = s.Dv.expect_int();
  p.scale = scale;
  p.rule = rule;
  p.query = tensor4(query);
  p.key = tensor4(key);
  p.value = tensor4(value);
  p.query_blocks = blocks(p.N, kQueryBlock);
  p.key_blocks = blocks(p.M, kKeyBlock);
  return p;
}

int64_t products(const AttentionParams& p) { return p.B * p.Hq * p.N * p.M * (p.D + p.Dv + 1); }

/// Buffers for packed keys and values, and the packing itself.
class Workspace {
 public:
  Workspace(AttentionParams& p, const Tensor& like) : p_(p), options_(like.options().dtype(accumulate_type(like.scalar_type()))) {
    finite_ = at::empty({2, heads_blocks()}, like.options().dtype(at::kBool));
    p.key_finite = finite_.mutable_data_ptr<bool>();
    p.value_finite = p.key_finite + heads_blocks();
  }
  void add(void*& pointer, int64_t block_elements) {
    buffers_.push_back(at::empty({heads_blocks() * block_elements}, options_));
    pointer = buffers_.back().mutable_data_ptr();
  }
  void pack() const {
    const auto fn = attention_pack_kernel.get();
    run_tasks(attention_pack_kernel, {heads_blocks(), p_.B * p_.Hkv * p_.M * (p_.D + p_.Dv)}, [&](int64_t task, void* scratch) { fn(p_, task, scratch); });
  }

 private:
  int64_t heads_blocks() const { return p_.B * p_.Hkv * p_.key_blocks; }

  const AttentionParams& p_;
  at::TensorOptions options_;
  Tensor finite_;
  std::vector<Tensor> buffers_;
};

AttentionResult attention_cpu(const AttentionArgs& args) {
  const AttentionShape s = check_attention(args);
  AttentionParams p = common_params(s, args.query, args.key, args.value, attention_scale(args),
                                    score_rule(s, args.mask, args.causal, args.align, args.window_left, args.window_right));
  Tensor out = at::empty({p.B, p.Hq, p.N, p.Dv}, args.query.options());
  Tensor lse = at::empty({p.B, p.Hq, p.N}, args.query.options().dtype(accumulate_type(args.query.scalar_type())));
  p.out = out.mutable_data_ptr();
  p.lse = lse.mutable_data_ptr();

  AttentionLayout layout{};
  attention_forward_layout_kernel.get()(p, &layout);
  Workspace workspace(p, args.query);
  workspace.add(p.key_transposed, layout.key_transposed);
  workspace.add(p.value_rows, layout.value_rows);
  workspace.pack();
  const auto forward = attention_forward_kernel.get();
  run_tasks(attention_forward_kernel, {p.B * p.Hq * p.query_blocks, products(p), layout.forward_scratch},
            [&](int64_t task, void* scratch) { forward(p, task, scratch); });
  return {out, lse};
}

AttentionGradients attention_backward_cpu(const AttentionBackwardArgs& args) {
  const AttentionShape s = check_attention_backward(args);
  AttentionParams p = common_params(s, args.query, args.key, args.value, args.scale,
                                    score_rule(s, args.mask, args.causal, args.align, args.window_left, args.window_right));
  p.saved_out = tensor4(args.out);
  p.saved_lse = tensor3(args.lse);
  p.grad_out = tensor4(args.grad_out);
  p.grad_lse = tensor3(args.grad_lse);
  const auto gradient = [](const Tensor& like, bool wanted, void*& pointer) {
    Tensor grad = at::empty(wanted ? like.sizes() : at::IntArrayRef{0}, like.options().memory_format(at::MemoryFormat::Contiguous));
    pointer = wanted ? grad.mutable_data_ptr() : nullptr;
    return grad;
  };
  Tensor grad_query = gradient(args.query, args.output_mask[0], p.grad_query);
  Tensor grad_key = gradient(args.key, args.output_mask[1], p.grad_key);
  Tensor grad_value = gradient(args.value, args.output_mask[2], p.grad_value);

  AttentionLayout layout{};
  attention_forward_layout_kernel.get()(p, &layout);
  attention_backward_layout_kernel.get()(p, &layout);
  Workspace workspace(p, args.query);
  workspace.add(p.key_transposed, layout.key_transposed);
  workspace.add(p.value_transposed, layout.value_transposed);
  if (args.output_mask[0]) workspace.add(p.key_rows, layout.key_rows);
  workspace.pack();
  if (args.output_mask[1] || args.output_mask[2]) {
    const auto fn = attention_grad_key_value_kernel.get();
    run_tasks(attention_grad_key_value_kernel, {p.B * p.Hkv * p.key_blocks, products(p), layout.grad_key_value_scratch},
              [&](int64_t task, void* scratch) { fn(p, task, scratch); });
  }
  if (args.output_mask[0]) {
    const auto fn = attention_grad_query_kernel.get();
    run_tasks(attention_grad_query_kernel, {p.B * p.Hq * p.query_blocks, products(p), layout.grad_query_scratch},
              [&](int64_t task, void* scratch) { fn(p, task, scratch); });
  }
  return {grad_query, grad_key, grad_value};
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, CPU, m) {
  using namespace fulgurite;
  m.impl("attention", attention_from_schema<attention_cpu>);
  m.impl("_attention_backward", attention_backward_from_schema<attention_backward_cpu>);
}
