// From sizes of gradients to the blocks of their statistics, and back to the list's.
#include "amp/plan.h"

#include <array>
#include <memory>

#include "amp/rules/problem.h"
#include "amp/rules/stats_tree.h"
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
  // Gradients 1, 2, 4 and 5 of the list, where 4 meets 0, 5 meets 1, and then 2 meets 0.
  CHECK(plan.total(sums, bad).sum == ((-0x1p60 + 1) + 0x1p60) + (1.0 + ((3.0 + 5) + 4)));
  CHECK(plan.total(sums, bad).first_bad == -1);
  bad[6] = bad[3] = true;
  CHECK(plan.total(sums, bad).first_bad == 4);
  bad[0] = true;
  CHECK(plan.total(sums, bad).first_bad == 1);
}

TEST_CASE("a sum takes every 16th number, then halves") {
  for (const int64_t n : {0, 1, 15, 16, 17, 100}) {
    const auto at = [](int64_t i) { return i % 3 == 0 ? 0x1p53 : 1.0 + static_cast<double>(i); };
    double lanes[16] = {};
    for (int64_t i = 0; i < n; ++i) lanes[i % 16] += at(i);
    double halves[8], quarters[4];
    for (int k = 0; k < 8; ++k) halves[k] = lanes[k] + lanes[k + 8];
    for (int k = 0; k < 4; ++k) quarters[k] = halves[k] + halves[k + 4];
    CHECK(fulgurite::tree_sum(n, at) == (quarters[0] + quarters[2]) + (quarters[1] + quarters[3]));
  }
}

TEST_CASE("a list without gradients has no slots") {
  const StatsPlan plan({});
  CHECK(plan.slots() == 0);
  CHECK(plan.total(nullptr, nullptr).sum == 0);
  CHECK(plan.total(nullptr, nullptr).first_bad == -1);
}
