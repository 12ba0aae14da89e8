// Random features on the CPU, torch side.
#include "common/check_choice.h"
#include "common/dtype.h"
#include "common/fresh.h"
#include "cpu/huge_pages.h"
#include "cpu/tasks.h"
#include "linear/cpu/kernels/favor_params.h"
#include "linear/cpu/tensors.h"
#include "linear/favor_features.h"

#include <torch/library.h>

namespace fulgurite {

FULGURITE_KERNEL(linear_favor_features, favor_maxima, FavorTaskFn);
FULGURITE_KERNEL(linear_favor_features, favor_features, FavorTaskFn);
FULGURITE_KERNEL(linear_favor_features, favor_layout, FavorLayoutFn);
FULGURITE_KERNEL(linear_favor_features_backward, favor_features_backward, FavorBackwardTaskFn);
FULGURITE_KERNEL(linear_favor_features_backward, favor_features_backward_layout,
                 FavorBackwardLayoutFn);
FULGURITE_KERNEL(linear_favor_features_backward, favor_projection_sums, FavorSumsFn);

namespace {

/// What a feature takes besides its product.
constexpr int64_t kFeatureCost = 24;

/// The sequences of every head of x (B,H,N,D).
class HeadSequences {
 public:
  HeadSequences(const char* op, const Tensor& x, const OptionalTensor& cu_seqlens)
      : covered_(x.size(2)) {
    const int64_t heads = x.size(0) * x.size(1);
    if (!cu_seqlens) {
      plan_.add_batch(heads, covered_);
      return;
    }
    const std::vector<int64_t> offsets = read_offsets(op, "cu_seqlens", *cu_seqlens, covered_);
    covered_ = offsets.back();
    for (int64_t h = 0; h < heads; ++h) plan_.add_pack(offsets, h);
  }
  Pieces pieces() const { return plan_.pieces(); }
  /// Positions past the last sequence belong to nobody.
  void clear_tail(const Tensor& t) const {
    if (covered_ < t.size(2)) t.narrow(2, covered_, t.size(2) - covered_).zero_();
  }

 private:
  SequencePlan plan_;
  int64_t covered_;
};

void describe(FavorProblem& p, const FavorFeaturesArgs& a, const HeadSequences& sequences) {
  p.dtype = kernel_dtype(a.x.scalar_type());
  p.kind = choice_of(kFavorKinds, a.kind);
  p.is_query = a.is_query;
  p.eps = a.eps;
  p.H = a.x.size(1);
  p.N = a.x.size(2);
  p.D = a.x.size(3);
  p.m = a.projection.size(0);
  p.x = {a.x.const_data_ptr(), a.x.stride(0), a.x.stride(1), a.x.stride(2), a.x.stride(3)};
  p.projection = of_channels(a.projection);
  p.parts = sequences.pieces();
}

int64_t products_cost(const FavorFeaturesArgs& a) {
  return a.x.numel() / a.x.size(3) * a.projection.size(0) * (a.x.size(3) + kFeatureCost);
}

Tensor favor_features_cpu(const FavorFeaturesArgs& args) {
  const c10::SymDimVector shape = check_favor_features(args);
  const HeadSequences sequences(FavorFeaturesArgs::kName, args.x, args.cu_seqlens);
  Tensor out = on_huge_pages(at::empty_symint(shape, args.x.options()));
  sequences.clear_tail(out);
  if (out.numel() == 0) return out;
  FavorFeaturesParams p{};
  describe(p, args, sequences);
  p.out = out.mutable_data_ptr();
  const TaskSpace tasks{p.parts.group_count, products_cost(args)};
  Tensor maxima;
  if (!args.is_query) {
    maxima = at::empty({p.parts.groups[p.parts.group_count]}, accumulate_options(args.x));
    p.maxima = maxima.mutable_data_ptr();
    run_kernel(favor_maxima_kernel, favor_layout_kernel, p, tasks);
  }
  run_kernel(favor_features_kernel, favor_layout_kernel, p, tasks);
  return out;
}

FavorFeaturesBackwardArgs::Result favor_features_backward_cpu(
    const FavorFeaturesBackwardArgs& args) {
  check_favor_features_backward(args);
  const FavorFeaturesArgs& f = args.forward;
  const auto& wanted = args.output_mask;
  const HeadSequences sequences(FavorFeaturesBackwardArgs::kName, f.x, f.cu_seqlens);
  const Tensor out = args.out.contiguous(), grad_out = args.grad_out.contiguous();
  FavorBackwardParams p{};
  describe(p, f, sequences);
  p.out = out.const_data_ptr();
  p.grad_out = grad_out.const_data_ptr();
  Tensor grad_x = fresh_gradient(wanted[kFavorX], f.x);
  Tensor grad_projection = fresh_gradient(wanted[kFavorProjection], f.projection, f.x);
  if (wanted[kFavorX]) {
    sequences.clear_tail(on_huge_pages(grad_x));
    p.grad_x = grad_x.mutable_data_ptr();
  }
  Tensor sums;
  if (wanted[kFavorProjection]) {
    p.grad_projection = grad_projection.mutable_data_ptr();
    sums = at::empty({p.parts.group_count, p.m, p.D}, accumulate_options(f.x));
    p.sums = sums.mutable_data_ptr();
  }
  run_kernel(favor_features_backward_kernel, favor_features_backward_layout_kernel, p,
             {p.parts.group_count, 2 * products_cost(f)});
  // Without sequences there is nothing to add, and no pointer to it.
  if (sums.defined()) run_rows(favor_projection_sums_kernel, p, p.m, 16, sums.numel());
  return {grad_x, grad_projection};
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, CPU, m) {
  using namespace fulgurite;
  implement<favor_features_cpu>(m);
  implement<favor_features_backward_cpu>(m);
}
