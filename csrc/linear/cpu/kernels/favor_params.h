// What the kernels of random features are told besides the problem.
#pragma once

#include "linear/rules/favor_problem.h"

namespace fulgurite {

/// Positions whose products with the projection are held at once.
inline constexpr int64_t kFavorRows = 24;

/// Tasks are groups of pieces.
struct FavorFeaturesParams : FavorProblem {
  void* out;     // (B,H,N,M)
  void* maxima;  // (pieces), accumulation type: of keys
};

/// What is null is not wanted.
struct FavorBackwardParams : FavorProblem {
  const void *out, *grad_out;  // (B,H,N,M)
  void* grad_x;                // (B,H,N,D)
  void* sums;                  // (groups,m,D), accumulation type
  void* grad_projection;       // (m,D)
};

using FavorTaskFn = void(const FavorFeaturesParams&, int64_t group, void* scratch);
using FavorLayoutFn = void(const FavorFeaturesParams&, int64_t* bytes);
using FavorBackwardTaskFn = void(const FavorBackwardParams&, int64_t group, void* scratch);
using FavorBackwardLayoutFn = void(const FavorBackwardParams&, int64_t* bytes);
using FavorSumsFn = void(const FavorBackwardParams&, int64_t first, int64_t last);

}  // namespace fulgurite
