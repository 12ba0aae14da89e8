// Random features against plain loops: layouts, kinds, packs, pieces.
#include "catch.h"
#include "features_problem.h"
#include "scratch.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
FavorTaskFn favor_maxima, favor_features;
FavorLayoutFn favor_layout;
}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite

using namespace fulgurite;

namespace {

constexpr double kUnwritten = 99;

/// Every `step`-th position is compared.
void check(const FeatureCase& q, int64_t step = 1) {
  const FeatureSizes& size = q.size;
  INFO("dtype " << int(q.dtype) << ", N " << size.N << ", D " << size.D << ", m " << size.m
                << ", query " << q.is_query << ", hyperbolic " << q.hyperbolic << ", stride "
                << q.strides.position);
  const int64_t count = q.heads * size.N * q.features;
  FavorFeaturesParams p{};
  q.describe(p);
  Elements out(q.dtype, count + 8, kUnwritten),
      maxima(q.sums, p.parts.groups[p.parts.group_count] + 1);
  p.out = out.data();
  p.maxima = maxima.data();
  int64_t bytes = 0;
  FULGURITE_VARIANT::favor_layout(p, &bytes);
  if (!q.is_query) run(FULGURITE_VARIANT::favor_maxima, p, p.parts.group_count, bytes);
  run(FULGURITE_VARIANT::favor_features, p, p.parts.group_count, bytes);
  for (int64_t i = 0; i < 8; ++i) REQUIRE(out[count + i] == kUnwritten);
  for (int64_t bh = 0; bh < q.heads; ++bh)
    for (int64_t t = 0; t < size.N; t += step) {
      const double constant = q.constant(bh, t);
      for (int64_t j = 0; j < q.features; ++j)
        REQUIRE(
            near(q.dtype, out[(bh * size.N + t) * q.features + j], q.feature(bh, t, j, constant)));
    }
}

}  // namespace

TEST_CASE("features of every layout") {
  for (const Dtype dtype : kDtypes)
    for (const FeatureOrder order : kFeatureOrders)
      for (const bool is_query : {true, false}) {
        check({dtype, {2, 3, 5, 8, 12}, order, is_query, false, false});
        check({dtype, {1, 2, 50, 7, 37}, order, is_query, true, true});
      }
}

TEST_CASE("one of each, nothing") {
  for (const bool is_query : {true, false}) {
    check({Dtype::kFloat32, {1, 1, 1, 1, 1}, FeatureOrder::kPlain, is_query, false, false});
    check({Dtype::kFloat32, {2, 2, 0, 3, 4}, FeatureOrder::kPlain, is_query, false, false});
  }
}

TEST_CASE("keys of a pack, and of several pieces, have one maximum each") {
  for (const Dtype dtype : kDtypes)
    for (const int64_t split : {1, 20, 35})
      check({dtype, {1, 3, 70, 4, 9, split}, FeatureOrder::kPositionsFirst, false, false, false});
  check({Dtype::kFloat32, {1, 2, 2100, 2, 3}, FeatureOrder::kPlain, false, true, false}, 700);
  check({Dtype::kFloat16, {1, 1, 2100, 2, 3, 1050}, FeatureOrder::kPlain, false, false, false},
        700);
}
