// From sizes to sequences and blocks.
#include "attention/plan.h"

#include <utility>

#include "catch.h"

namespace {

using fulgurite::AttentionPlan;
using fulgurite::AttentionProblem;

constexpr fulgurite::BlockLimits kLimits{48, 128, 16};  // query rows, keys, multiple of packed keys

AttentionProblem described(const AttentionPlan& plan) {
  AttentionProblem problem{};
  plan.describe(problem);
  return problem;
}

}  // namespace

TEST_CASE("blocks are numbered over all sequences, and every query and key has one") {
  AttentionPlan plan(kLimits);
  const int64_t sizes[][2] = {{0, 5}, {1, 0}, {48, 128}, {49, 129}, {100, 1000}, {7, 17}};
  int64_t query_start = 0, key_start = 0, pairs = 0;
  for (const auto& [N, M] : sizes) {
    plan.add_sequence(query_start, N, key_start, M);
    query_start += N;
    key_start += M;
    pairs += N * M;
  }
  const AttentionProblem p = described(plan);
  REQUIRE(p.B == 6);
  int64_t query_block = 0, key_block = 0, packed = 0;
  for (int64_t b = 0; b < p.B; ++b) {
    const fulgurite::Sequence& s = p.sequences[b];
    CHECK(s.query_block == query_block);
    CHECK(s.key_block == key_block);
    CHECK(s.packed_start == packed);
    CHECK(s.query_rows >= 1);
    CHECK(s.query_rows <= kLimits.query_rows);
    CHECK(s.packed_keys >= s.M);
    CHECK(s.packed_keys < s.M + kLimits.key_multiple);
    CHECK(s.packed_keys % kLimits.key_multiple == 0);
    query_block += (s.N + s.query_rows - 1) / s.query_rows;
    key_block += (s.M + kLimits.keys - 1) / kLimits.keys;
    packed += s.packed_keys;
  }
  CHECK(p.query_blocks == query_block);
  CHECK(p.key_blocks == key_block);
  CHECK(plan.packed_keys() == packed);
  CHECK(plan.pairs() == pairs);
}

TEST_CASE("the blocks of a sequence are even, in whole strips of 12 rows") {
  for (const auto& [N, rows] : {std::pair<int64_t, int64_t>{48, 48},
                                {49, 36},
                                {97, 36},
                                {100, 36},
                                {144, 48},
                                {145, 48},
                                {11, 11}}) {
    AttentionPlan plan(kLimits);
    plan.add_batch(1, N, 1);
    INFO("N = " << N);
    CHECK(described(plan).sequences[0].query_rows == rows);
  }
}

TEST_CASE("splits of a cache are key blocks that nobody packs") {
  AttentionPlan plan(kLimits);
  plan.add_splits(1, 1000, 300);
  plan.add_splits(1, 0, 300);
  plan.add_splits(2, 300, 300);
  const AttentionProblem p = described(plan);
  CHECK(p.key_blocks == 4 + 0 + 1);
  CHECK(p.query_blocks == 3);
  CHECK(plan.packed_keys() == 0);
  CHECK(p.sequences[2].key_block == 4);
}

TEST_CASE("no sequences, no blocks") {
  AttentionPlan plan(kLimits);
  plan.add_batch(0, 5, 5);
  const AttentionProblem p = described(plan);
  CHECK(p.B == 0);
  CHECK(p.query_blocks == 0);
  CHECK(p.key_blocks == 0);
}
