// Forward mode (torch.func.jvp, jacfwd, dual numbers) of routing and of the experts.
#pragma once

#include "moe/experts_args.h"

namespace fulgurite {

/// The tangent of the weights of a routing that was done.
Tensor route_tangent(const RouteArgs& args, const Tensor& ids);
/// The tangent of the experts' result, composed of grouped products and of ATen's own activations, which have a forward mode.
Tensor experts_tangent(const ExpertsArgs& args);

}  // namespace fulgurite
