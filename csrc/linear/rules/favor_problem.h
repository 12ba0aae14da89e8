// Random features as every device sees them.
//
// Legend: B batch, H heads, N positions, D width, m rows of the projection, M features: m, or 2m.
#pragma once

#include "linear/rules/problem.h"

namespace fulgurite {

/// (B,H,N,D) of any strides, in elements.
struct HeadRows {
  const void* data;
  int64_t batch, head, position, feature;
};

struct FavorProblem {
  Dtype dtype;  // of x and out
  FavorKind kind;
  bool is_query;
  double eps;
  int64_t H, N, D, m;
  HeadRows x;
  Input projection;  // (1,m,D)
  Pieces parts;      // of every head: the batch of a sequence is b·H + h
};

}  // namespace fulgurite
