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
  return call(cast);
}

Tensor balance_autocast(const BalanceArgs& args) {
  const AutocastTo float32(args.logits.device().type(), at::kFloat);
  BalanceArgs cast = args;
  cast.logits = float32(args.logits);
  return call(cast);
}

Tensor z_loss_autocast(const ZLossArgs& args) {
  const AutocastTo float32(args.logits.device().type(), at::kFloat);
  return call(ZLossArgs{float32(args.logits), args.token_mask});
}

Tensor experts_autocast(const ExpertsArgs& args) {
  const AutocastTo lower(args.x.device().type());
  ExpertsArgs cast = args;
  cast.x = lower(args.x);
  cast.w_in = lower(args.w_in);
  cast.w_out = lower(args.w_out);
  cast.b_in = lower(args.b_in);
  cast.b_out = lower(args.b_out);
  return call(cast);
}

Tensor grouped_mm_autocast(const GroupedMmArgs& args) {
  const AutocastTo lower(args.x.device().type());
  return call(GroupedMmArgs{lower(args.x), lower(args.weight), args.offsets, lower(args.bias),
                            args.transposed});
}

void register_autocast(torch::Library& m) {
  implement<route_autocast>(m);
  implement<balance_autocast>(m);
  implement<z_loss_autocast>(m);
  implement<experts_autocast>(m);
  implement<grouped_mm_autocast>(m);
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, AutocastCPU, m) { fulgurite::register_autocast(m); }

TORCH_LIBRARY_IMPL(fulgurite, AutocastCUDA, m) { fulgurite::register_autocast(m); }
