// Random features written out in float64.
#pragma once

#include <algorithm>
#include <vector>

#include "elements.h"
#include "linear/cpu/kernels/favor_params.h"
#include "linear/plan.h"

namespace fulgurite {

struct FeatureSizes {
  int64_t B, H, N, D, m;
  int64_t split = 0;  // a pack of two sequences where it is above 0
};

enum class FeatureOrder { kPlain, kPositionsFirst, kGaps };
inline constexpr FeatureOrder kFeatureOrders[] = {
    FeatureOrder::kPlain, FeatureOrder::kPositionsFirst, FeatureOrder::kGaps};

struct FeatureCase {
  Dtype dtype;
  FeatureSizes size;
  bool is_query, hyperbolic, wide;  // wide: a float32 projection
  double eps = 0.01;
  Dtype sums = accumulate(dtype);
  Dtype of_projection = wide && dtype != Dtype::kFloat64 ? Dtype::kFloat32 : dtype;
  int64_t features = hyperbolic ? 2 * size.m : size.m, heads = size.B * size.H;
  HeadRows strides;
  Elements x, projection;
  SequencePlan plan;
  /// One number of x, or of the projection, is `nudge` more than it is stored, for slopes.
  int64_t nudged_x = -1, nudged_projection = -1;
  double nudge = 0;

  FeatureCase(Dtype dtype, FeatureSizes size, FeatureOrder order, bool is_query, bool hyperbolic,
              bool wide)
      : dtype(dtype),
        size(size),
        is_query(is_query),
        hyperbolic(hyperbolic),
        wide(wide),
        strides(strides_of(size, order)),
        x(Elements::sines(dtype, size.B * strides.batch + 1, 3)),
        projection(Elements::sines(of_projection, size.m * size.D + 1, 7, 2)) {
    for (int64_t h = 0; h < heads; ++h)
      if (size.split > 0)
        plan.add_pack({0, size.split, size.N}, h);
      else if (h == 0)
        plan.add_batch(heads, size.N);
  }
  static HeadRows strides_of(const FeatureSizes& s, FeatureOrder order) {
    if (order == FeatureOrder::kPlain) return {nullptr, s.H * s.N * s.D, s.N * s.D, s.D, 1};
    if (order == FeatureOrder::kPositionsFirst)
      return {nullptr, s.N * s.H * s.D, s.D, s.H * s.D, 1};
    return {nullptr, s.H * s.N * (2 * s.D + 3), s.N * (2 * s.D + 3), 2 * s.D + 3, 2};
  }
  void describe(FavorProblem& p) const {
    p.dtype = dtype;
    p.kind = hyperbolic ? FavorKind::kHyperbolic : FavorKind::kPositive;
    p.is_query = is_query;
    p.eps = eps;
    p.H = size.H;
    p.N = size.N;
    p.D = size.D;
    p.m = size.m;
    p.x = strides;
    p.x.data = x.data();
    p.projection = {{projection.data(), 0, size.D, 1}, of_projection == Dtype::kFloat32};
    p.parts = plan.pieces();
  }
  int64_t at(int64_t bh, int64_t t, int64_t d) const {
    return bh / size.H * strides.batch + bh % size.H * strides.head + t * strides.position +
           d * strides.feature;
  }
  double scaled(int64_t bh, int64_t t, int64_t d) const {
    const int64_t i = at(bh, t, d);
    return (x[i] + (i == nudged_x ? nudge : 0)) * std::pow(static_cast<double>(size.D), -0.25);
  }
  double product(int64_t bh, int64_t t, int64_t j) const {
    double sum = 0;
    for (int64_t d = 0; d < size.D; ++d) {
      const int64_t i = j % size.m * size.D + d;
      sum += (projection[i] + (i == nudged_projection ? nudge : 0)) * scaled(bh, t, d);
    }
    return j < size.m ? sum : -sum;
  }
  double largest(int64_t bh, int64_t first, int64_t last) const {
    double most = -1e300;
    for (int64_t t = first; t < last; ++t)
      for (int64_t j = 0; j < features; ++j) most = std::max(most, product(bh, t, j));
    return most;
  }
  /// What is taken from the exponents of a position, at its stored numbers.
  double constant(int64_t bh, int64_t t) const {
    if (is_query) return largest(bh, t, t + 1);
    const bool first = t < size.split;
    return size.split == 0 ? largest(bh, 0, size.N)
                           : largest(bh, first ? 0 : size.split, first ? size.split : size.N);
  }
  double feature(int64_t bh, int64_t t, int64_t j, double constant) const {
    double half = 0;
    for (int64_t d = 0; d < size.D; ++d) half += scaled(bh, t, d) * scaled(bh, t, d) / 2;
    return (std::exp(product(bh, t, j) - half - constant) + eps) /
           std::sqrt(static_cast<double>(features));
  }
};

}  // namespace fulgurite
