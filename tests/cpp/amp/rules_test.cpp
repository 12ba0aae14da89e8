// The loss scale and the factor of a clipped norm.
#include <cmath>
#include <limits>

#include "amp/rules/scale.h"
#include "catch.h"

namespace {

using fulgurite::clip_factor;
using fulgurite::Refill;
using fulgurite::ScaleRule;
using fulgurite::ScaleState;
using fulgurite::update_scale;

constexpr double kInf = std::numeric_limits<double>::infinity();

constexpr ScaleRule kRule{2, 0.5, 2, 2, Refill::kClean, 1, kInf};

ScaleState state(float scale, int32_t tracker, int32_t hysteresis) {
  return {scale, tracker, hysteresis, 0, 0, 0, 0};
}

}  // namespace

TEST_CASE("the scale grows after an interval of clean updates") {
  ScaleState s = state(8, 0, 2);
  update_scale(s, true, kRule);
  CHECK((s.scale == 8 && s.tracker == 1));
  update_scale(s, true, kRule);
  CHECK((s.scale == 16 && s.tracker == 0 && s.clean == 2));
}

TEST_CASE("the scale backs off once as many updates as tolerated were skipped") {
  ScaleState s = state(8, 1, 2);
  update_scale(s, false, kRule);
  CHECK((s.scale == 8 && s.hysteresis == 1 && s.tracker == 0));
  for (const float scale : {4.0f, 2.0f, 1.0f, 1.0f}) {  // not below the minimum
    update_scale(s, false, kRule);
    CHECK(s.scale == scale);
  }
  CHECK((s.skipped == 5 && s.in_a_row == 5 && s.last_skipped == 5 && s.clean == 0));
  update_scale(s, true, kRule);
  CHECK((s.in_a_row == 0 && s.last_skipped == 5 && s.clean == 1));
  s.hysteresis = std::numeric_limits<int32_t>::min();
  update_scale(s, false, kRule);
  CHECK(s.hysteresis == std::numeric_limits<int32_t>::min());
}

TEST_CASE("the tolerance is whole again at a clean update, or when the scale grows") {
  for (const Refill refill : {Refill::kClean, Refill::kGrowth}) {
    ScaleRule rule = kRule;
    rule.refill = refill;
    ScaleState s = state(8, 0, 2);
    update_scale(s, false, rule);
    update_scale(s, true, rule);
    CHECK(s.hysteresis == (refill == Refill::kClean ? 2 : 1));
    update_scale(s, true, rule);
    CHECK(s.hysteresis == 2);
  }
}

TEST_CASE("the scale grows neither beyond its maximum nor to infinity") {
  ScaleRule rule = kRule;
  rule.max_scale = 12;
  CHECK(grown(8, rule) == 12);
  const float most = std::numeric_limits<float>::max();
  CHECK(grown(most, kRule) == most);
  rule.growth_factor = kInf;
  rule.max_scale = kInf;
  CHECK(grown(8, rule) == 8);
}

TEST_CASE("norms above the limit are clipped to it, and NaN stays visible") {
  CHECK(clip_factor(4, 2, 0.25, 0) == 0.125f);
  CHECK(clip_factor(1, 2, 0.25, 0) == 0.25f);
  CHECK(clip_factor(0, 2, 1, 1e-6) == 1.0f);
  CHECK(clip_factor(1, 2, 1, 3) == 0.5f);
  CHECK(std::isnan(clip_factor(std::nan(""), 2, 1, 0)));
}
