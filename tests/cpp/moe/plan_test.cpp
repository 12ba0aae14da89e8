// From sizes to segments and parts of experts.
#include "moe/plan.h"

#include <numeric>

#include "catch.h"

namespace {

using fulgurite::count_parts;
using fulgurite::cut_into_parts;
using fulgurite::ExpertSizes;
using fulgurite::ExpertsPart;
using fulgurite::Segment;
using fulgurite::segments_of;
using fulgurite::tokens_per_task;

constexpr int64_t kRows = 8;  // of a segment

/// offsets of experts with these rows.
std::vector<int64_t> offsets_of(const std::vector<int64_t>& rows) {
  std::vector<int64_t> offsets{0};
  for (const int64_t n : rows) offsets.push_back(offsets.back() + n);
  return offsets;
}

}  // namespace

TEST_CASE("segments cover every expert's rows in order, and none is longer than asked") {
  const std::vector<int64_t> rows{0, 1, 8, 9, 0, 30, 16};
  const std::vector<int64_t> offsets = offsets_of(rows);
  const std::vector<Segment> segments = segments_of(offsets.data(), 7, kRows);
  int64_t next = 0;
  std::vector<int64_t> seen(rows.size());
  for (const Segment& s : segments) {
    CHECK(s.first == next);
    CHECK((s.rows > 0 && s.rows <= kRows));
    CHECK((s.first >= offsets[s.expert] && s.first + s.rows <= offsets[s.expert + 1]));
    seen[s.expert] += s.rows;
    next += s.rows;
  }
  CHECK(seen == rows);
  CHECK(segments.size() == 0 + 1 + 1 + 2 + 0 + 4 + 2);
  CHECK(segments_of(offsets.data(), 0, kRows).empty());
}

TEST_CASE("parts are neighbouring experts, with all rows between them") {
  const std::vector<int64_t> rows{5, 0, 20, 3, 3, 3, 0, 40, 1};
  const std::vector<int64_t> offsets = offsets_of(rows);
  std::vector<int32_t> permutation(static_cast<size_t>(offsets.back()));
  std::iota(permutation.begin(), permutation.end(), 0);
  for (const int64_t count : {1, 2, 3, 5, 9, 20}) {
    INFO(count << " parts");
    const std::vector<ExpertsPart> parts =
        cut_into_parts(offsets, permutation.data(), count, kRows);
    REQUIRE((!parts.empty() && static_cast<int64_t>(parts.size()) <= count));
    int64_t expert = 0, first = 0;
    for (const ExpertsPart& part : parts) {
      CHECK(part.first_expert == expert);
      CHECK(part.first == first);
      CHECK(part.begins == (&part == &parts.front()));
      CHECK(part.ends == (&part == &parts.back()));
      CHECK(part.assignments == permutation.data() + first);
      REQUIRE(static_cast<int64_t>(part.offsets.size()) == part.experts + 1);
      CHECK((part.offsets.front() == 0 && part.offsets.back() == part.rows));
      for (int64_t e = 0; e <= part.experts; ++e)
        CHECK(part.offsets[e] == offsets[expert + e] - first);
      int64_t in_segments = 0;
      for (const Segment& s : part.segments) in_segments += s.rows;
      CHECK(in_segments == part.rows);
      expert += part.experts;
      first += part.rows;
    }
    CHECK(expert == static_cast<int64_t>(rows.size()));
    CHECK(first == offsets.back());
  }
}

TEST_CASE("even experts make even parts, and one part is the whole call") {
  const std::vector<int64_t> offsets = offsets_of(std::vector<int64_t>(8, 10));
  const std::vector<int32_t> permutation(80);
  const auto parts = cut_into_parts(offsets, permutation.data(), 4, kRows);
  REQUIRE(parts.size() == 4);
  for (const ExpertsPart& part : parts) CHECK((part.experts == 2 && part.rows == 20));
  const auto whole = cut_into_parts(offsets, permutation.data(), 1, kRows);
  REQUIRE(whole.size() == 1);
  CHECK((whole[0].begins && whole[0].ends && whole[0].offsets == offsets));
}

TEST_CASE("as many parts as the work pays for, and at most one for each row of a token") {
  const ExpertSizes sizes{100, 4, 8, 16, 32, 64};
  const double work = (400 + 16 * 8) * 16 * 32;
  CHECK(count_parts(sizes, 400, work) == 1);
  CHECK(count_parts(sizes, 400, work * 2) == 1);
  CHECK(count_parts(sizes, 400, work / 3) == 3);
  CHECK(count_parts(sizes, 400, 1) == 4);
  CHECK(count_parts(sizes, 399, 1) == 3);
  CHECK(count_parts(sizes, 0, 1) == 1);
}

TEST_CASE("a task adds up enough tokens to pay for every expert's matrix") {
  CHECK(tokens_per_task({10000, 2, 8, 1, 1, 1}, 256, 4096) == 1024);
  CHECK(tokens_per_task({10000, 8, 2, 1, 1, 1}, 256, 4096) == 256);
  CHECK(tokens_per_task({10000, 1, 64, 1, 1, 1}, 256, 4096) == 4096);
  CHECK(tokens_per_task({100, 1, 64, 1, 1, 1}, 256, 4096) == 100);
}

TEST_CASE("a call with a size of 0 has nothing to compute, but for the hidden width") {
  CHECK_FALSE(ExpertSizes{1, 1, 1, 1, 0, 0}.nothing());
  CHECK(ExpertSizes{0, 1, 1, 1, 1, 1}.nothing());
  CHECK(ExpertSizes{1, 0, 1, 1, 1, 1}.nothing());
  CHECK(ExpertSizes{1, 1, 0, 1, 1, 1}.nothing());
  CHECK(ExpertSizes{1, 1, 1, 0, 1, 1}.nothing());
}
