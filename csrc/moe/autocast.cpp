// x and the experts' weights and biases to the autocast dtype; routing and losses to float32; the
// rest as it is given.
#include "common/autocast.h"
#include "moe/experts_args.h"

#include <torch/library.h>

namespace fulgurite {
namespace {

RouteResult route_autocast(const RouteArgs& args) {
  const AutocastTo float32(args.logits.device().type(), at::kFloat);
  RouteArgs cast = args;
  cast.logits = float32(args.logits);
  return cast.call();
}

Tensor balance_autocast(const BalanceArgs& args) {
  const AutocastTo float32(args.logits.device().type(), at::kFloat);
  BalanceArgs cast = args;
  cast.logits = float32(args.logits);
  return cast.call();
}

Tensor z_loss_autocast(const Tensor& logits, const OptionalTensor& token_mask) {
  const AutocastTo float32(logits.device().type(), at::kFloat);
  return call_z_loss(float32(logits), token_mask);
}

Tensor experts_autocast(const ExpertsArgs& args) {
  const AutocastTo lower(args.x.device().type());
  ExpertsArgs cast = args;
  cast.x = lower(args.x);
  cast.w_in = lower(args.w_in);
  cast.w_out = lower(args.w_out);
  cast.b_in = lower(args.b_in);
  cast.b_out = lower(args.b_out);
  return cast.call();
}

Tensor grouped_mm_autocast(const GroupedMmArgs& args) {
  const AutocastTo lower(args.x.device().type());
  return GroupedMmArgs{lower(args.x), lower(args.weight), args.offsets, lower(args.bias),
                       args.transposed}
      .call();
}

void register_autocast(torch::Library& m) {
  m.impl("moe_route", route_from_schema<route_autocast>);
  m.impl("moe_balance_loss", balance_from_schema<balance_autocast>);
  m.impl("moe_z_loss", z_loss_autocast);
  m.impl("moe_experts", experts_from_schema<experts_autocast>);
  m.impl("moe_grouped_mm", grouped_mm_from_schema<grouped_mm_autocast>);
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, AutocastCPU, m) { fulgurite::register_autocast(m); }

TORCH_LIBRARY_IMPL(fulgurite, AutocastCUDA, m) { fulgurite::register_autocast(m); }
