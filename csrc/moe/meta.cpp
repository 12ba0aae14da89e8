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
  return at::empty_symint({}, logits.options().dtype(accumulate_type(logits.scalar_type())));
}

Tensor balance_meta(const BalanceArgs& args) {
  check_balance(args);
  return scalar_loss(args.logits);
}

Tensor balance_backward_meta(const Tensor& grad, const BalanceArgs& args, bool wanted) {
  check_balance_backward(grad, args);
  return fresh_gradient(wanted, args.logits);
}

Tensor z_loss_meta(const Tensor& logits, const OptionalTensor& token_mask) {
  check_z_loss("moe_z_loss", logits, token_mask);
  return scalar_loss(logits);
}

Tensor z_loss_backward_meta(const Tensor& grad, const Tensor& logits,
                            const OptionalTensor& token_mask, std::array<bool, 1> output_mask) {
  check_z_loss_backward(grad, logits, token_mask);
  return fresh_gradient(output_mask[0], logits);
}

void update_bias_meta(const Tensor& bias, const Tensor& counts, double, std::string_view rule,
                      bool) {
  check_update_bias(bias, counts, rule);
}

PlanResult plan_meta(const PlanArgs& args) {
  check_plan(args);
  const c10::SymInt T = args.ids.sym_size(0), K = args.ids.sym_size(1);
  const auto options = args.ids.options();
  return {at::empty_symint({T * K}, options.dtype(at::kInt)),                   // permutation (T·K)
          at::empty_symint({T, K}, options.dtype(at::kInt)),                    // inverse (T,K)
          at::empty_symint({args.num_experts + 1}, options.dtype(at::kLong))};  // offsets (E+1)
}

Tensor permute_meta(const Tensor& x, const Tensor& permutation, const Tensor& inverse) {
  check_permute(x, permutation, inverse);
  return at::empty_symint({permutation.sym_size(0), x.sym_size(1)}, x.options());  // (T·K,H)
}

Tensor combine_meta(const Tensor& y, const Tensor& inverse, const OptionalTensor& weights) {
  check_combine("moe_combine", y, inverse, weights);
  return at::empty_symint({inverse.sym_size(0), y.sym_size(1)}, y.options());  // (T,H)
}

std::tuple<Tensor, Tensor> combine_backward_meta(const Tensor& grad, const Tensor& y,
                                                 const Tensor& inverse,
                                                 const OptionalTensor& weights,
                                                 std::array<bool, 2> output_mask) {
  check_combine_backward(grad, y, inverse, weights);
  return {fresh_gradient(output_mask[0], y),
          fresh_gradient(output_mask[1] && weights, weights.value_or(y))};
}

Tensor experts_meta(const ExpertsArgs& args) {
  check_experts("moe_experts", args);
  return fresh_like(args.x);  // (T,H)
}

std::tuple<Tensor, Tensor> experts_forward_meta(const ExpertsArgs& args) {
  const ExpertsShape s = check_experts("_moe_experts_forward", args);
  const auto wide = args.x.options().dtype(accumulate_type(args.x.scalar_type()));
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
  m.impl("moe_route", route_from_schema<route_meta>);
  m.impl("_moe_route_backward", route_backward_from_schema<route_backward_meta>);
  m.impl("moe_plan", plan_from_schema<plan_meta>);
  m.impl("moe_permute", permute_meta);
  m.impl("moe_combine", combine_meta);
  m.impl("_moe_combine_backward", combine_backward_meta);
  m.impl("moe_experts", experts_from_schema<experts_meta>);
  m.impl("_moe_experts_forward", experts_forward_from_schema<experts_forward_meta>);
  m.impl("_moe_experts_backward", experts_backward_from_schema<experts_backward_meta>);
  m.impl("moe_grouped_mm", grouped_mm_from_schema<grouped_mm_meta>);
  m.impl("_moe_grouped_mm_backward", grouped_mm_backward_from_schema<grouped_mm_backward_meta>);
  m.impl("moe_balance_loss", balance_from_schema<balance_meta>);
  m.impl("_moe_balance_loss_backward", balance_backward_from_schema<balance_backward_meta>);
  m.impl("moe_z_loss", z_loss_meta);
  m.impl("_moe_z_loss_backward", z_loss_backward_meta);
  m.impl("moe_update_bias_", update_bias_meta);
}
