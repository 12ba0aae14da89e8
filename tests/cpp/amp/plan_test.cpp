// From sizes of gradients to the blocks of their statistics, and back to the list's.
#include "amp/plan.h"

#include <array>
#include <memory>

#include "amp/rules/problem.h"
#include "catch.h"

namespace {

using fulgurite::kStatsBlock;
using fulgurite::StatsPlan;

const std::vector<int64_t> kNumels{0, 1, kStatsBlock, 0, kStatsBlock + 1, 3 * kStatsBlock, 0};

}  // namespace

TEST_CASE("every block has a slot, in the order of the gradients, however slots are cut") {
  const StatsPlan plan(kNumels);
  REQUIRE(plan.slots() == 1 + 1 + 2 + 3);
  std::vector<std::array<int64_t, 2>> expected;
  for (size_t t = 0; t < kNumels.size(); ++t)
    for (int64_t block = 0; block * kStatsBlock < kNumels[t]; ++block)
      expected.push_back({static_cast<int64_t>(t), block});
  for (const int64_t at_once : {1, 2, 3, 7}) {
    int64_t next = 0;
    for (int64_t first = 0; first < plan.slots(); first += at_once)
      plan.for_slots(first, std::min(first + at_once, plan.slots()),
                     [&](int64_t gradient, int64_t block, int64_t slot) {
                       REQUIRE(slot == next);
                       CHECK(expected[slot] == std::array<int64_t, 2>{gradient, block});
                       ++next;
                     });
    CHECK(next == plan.slots());
  }
}

TEST_CASE("sums are added gradient by gradient, and the first bad one is named") {
  const StatsPlan plan(kNumels);
  const double sums[] = {1, 0x1p60, -0x1p60, 1, 3, 4, 5};
  bool bad[7] = {};
  const double in_order = ((((0.0 + 1) + 0x1p60) + (-0x1p60 + 1)) + ((3.0 + 4) + 5));
  CHECK(plan.total(sums, bad).sum == in_order);
  CHECK(plan.total(sums, bad).first_bad == -1);
  bad[6] = bad[3] = true;
  CHECK(plan.total(sums, bad).first_bad == 4);
  bad[0] = true;
  CHECK(plan.total(sums, bad).first_bad == 1);
}

TEST_CASE("a list without gradients has no slots") {
  const StatsPlan plan({});
  CHECK(plan.slots() == 0);
  CHECK(plan.total(nullptr, nullptr).sum == 0);
  CHECK(plan.total(nullptr, nullptr).first_bad == -1);
}
