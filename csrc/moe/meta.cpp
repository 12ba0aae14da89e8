// Shapes and dtypes of the results, for fake tensors, export and compile.
#include "common/check.h"
#include "common/fresh.h"
#include "moe/check.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace fulgurite {
namespace {

RouteResult route_meta(const RouteArgs& args) {
  const RouteShape s = check_route(args);
  const auto options = args.logits.options();
  return {
      at::empty_symint({s.T, s.K},
                       options.dtype(accumulate_type(args.logits.scalar_type()))),  // weights (T,K)
      at::empty_symint({s.T, s.K}, options.dtype(at::kInt)),                        // ids (T,K)
      at::empty_symint({s.E}, options.dtype(at::kLong))};                           // counts (E)
}

Tensor route_backward_meta(const RouteBackwardArgs& args) {
  check_route_backward(args);
  return fresh_gradient(args.output_mask[0], args.logits);
}

Tensor scalar_loss(const Tensor& logits) {
  return at::empty_symint({}, accumulate_options(logits));
}

Tensor balance_meta(const BalanceArgs& args) {
  check_balance(args);
  return scalar_loss(args.logits);
}

Tensor balance_backward_meta(const BalanceBackwardArgs& args) {
  check_balance_backward(args);
  return fresh_gradient(args.output_mask[0], args.forward.logits);
}

Tensor z_loss_meta(const ZLossArgs& args) {
  check_z_loss(args);
  return scalar_loss(args.logits);
}

Tensor z_loss_backward_meta(const ZLossBackwardArgs& args) {
  check_z_loss_backward(args);
  return fresh_gradient(args.output_mask[0], args.forward.logits);
}

void update_bias_meta(const UpdateBiasArgs& args) { check_update_bias(args); }

PlanResult plan_meta(const PlanArgs& args) {
  check_plan(args);
  const c10::SymInt T = args.ids.sym_size(0), K = args.ids.sym_size(1);
  const auto options = args.ids.options();
  return {at::empty_symint({T * K}, options.dtype(at::kInt)),                   // permutation (T·K)
          at::empty_symint({T, K}, options.dtype(at::kInt)),                    // inverse (T,K)
          at::empty_symint({args.num_experts + 1}, options.dtype(at::kLong))};  // offsets (E+1)
}

Tensor permute_meta(const PermuteArgs& args) {
  check_permute(args);
  return at::empty_symint({args.permutation.sym_size(0), args.x.sym_size(1)},
                          args.x.options());  // (T·K,H)
}

Tensor combine_meta(const CombineArgs& args) {
  check_combine(args);
  return at::empty_symint({args.inverse.sym_size(0), args.y.sym_size(1)},
                          args.y.options());  // (T,H)
}

std::tuple<Tensor, Tensor> combine_backward_meta(const CombineBackwardArgs& args) {
  check_combine_backward(args);
  const CombineArgs& f = args.forward;
  return {fresh_gradient(args.output_mask[0], f.y),
          fresh_gradient(args.output_mask[1] && f.weights, f.weights.value_or(f.y))};
}

Tensor experts_meta(const ExpertsArgs& args) {
  check_experts(args);
  return fresh_like(args.x);  // (T,H)
}

std::tuple<Tensor, Tensor> experts_forward_meta(const ExpertsForwardArgs& args) {
  const ExpertsShape s = check_experts(args);
  const auto wide = accumulate_options(args.x);
  return {fresh_like(args.x),                             // y (T,H)
          at::empty_symint({s.T * s.K, s.width}, wide)};  // hidden (T·K,width)
}

ExpertsGradients experts_backward_meta(const ExpertsBackwardArgs& args) {
  check_experts_backward(args);
  const ExpertsArgs& f = args.forward;
  const auto& mask = args.output_mask;
  return {fresh_gradient(mask[0], f.x),
          fresh_gradient(mask[1], f.weights),
          fresh_gradient(mask[2], f.w_in),
          fresh_gradient(mask[3], f.w_out),
          fresh_gradient(mask[4] && f.b_in, f.b_in, f.x),
          fresh_gradient(mask[5] && f.b_out, f.b_out, f.x)};
}

Tensor grouped_mm_meta(const GroupedMmArgs& args) {
  const GroupedMmShape s = check_grouped_mm(args);
  return at::empty_symint({s.rows, s.N}, args.x.options());
}

GroupedMmGradients grouped_mm_backward_meta(const GroupedMmBackwardArgs& args) {
  const GroupedMmShape s = check_grouped_mm_backward(args);
  const c10::SymDimVector bias =
      args.output_mask[2] ? c10::SymDimVector{s.E, s.N} : c10::SymDimVector{0};
  return {fresh_gradient(args.output_mask[0], args.x),
          fresh_gradient(args.output_mask[1], args.weight),
          at::empty_symint(bias, args.x.options())};
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, Meta, m) {
  using namespace fulgurite;
  implement<route_meta>(m);
  implement<route_backward_meta>(m);
  implement<plan_meta>(m);
  implement<permute_meta>(m);
  implement<combine_meta>(m);
  implement<combine_backward_meta>(m);
  implement<experts_meta>(m);
  implement<experts_forward_meta>(m);
  implement<experts_backward_meta>(m);
  implement<grouped_mm_meta>(m);
  implement<grouped_mm_backward_meta>(m);
  implement<balance_meta>(m);
  implement<balance_backward_meta>(m);
  implement<z_loss_meta>(m);
  implement<z_loss_backward_meta>(m);
  implement<update_bias_meta>(m);
}
