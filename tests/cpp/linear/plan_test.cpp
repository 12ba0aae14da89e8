// From sizes to sequences, pieces and groups.
#include "linear/plan.h"

#include "catch.h"

namespace {

using fulgurite::kPiecePositions;
using fulgurite::Piece;
using fulgurite::Pieces;
using fulgurite::SequencePlan;

/// Every position of every sequence is in one piece, pieces are in order, groups cover them.
void check_cover(const SequencePlan& plan) {
  const Pieces all = plan.pieces();
  REQUIRE(all.groups[0] == 0);
  int64_t sequence = -1, end = 0;
  for (int64_t g = 0; g < all.group_count; ++g) {
    REQUIRE(all.groups[g] < all.groups[g + 1]);
    int64_t positions = 0;
    for (int64_t i = all.groups[g]; i < all.groups[g + 1]; ++i) {
      const Piece& piece = all.pieces[i];
      if (piece.sequence != sequence) {
        CHECK((sequence < 0 || end == all.sequences[sequence].length));
        CHECK(piece.sequence == sequence + 1);
        sequence = piece.sequence;
        end = 0;
      }
      CHECK(piece.begin == end);
      CHECK((piece.begin < piece.end || all.sequences[sequence].length == 0));
      end = piece.end;
      positions += piece.end - piece.begin;
    }
    CHECK(positions <= kPiecePositions);
  }
  CHECK(sequence + 1 == plan.sequences());
  CHECK((sequence < 0 || end == all.sequences[sequence].length));
}

}  // namespace

TEST_CASE("every batch entry is a sequence of its own") {
  SequencePlan plan;
  plan.add_batch(3, 2 * kPiecePositions + 5);
  check_cover(plan);
  const Pieces all = plan.pieces();
  REQUIRE(plan.sequences() == 3);
  for (int64_t b = 0; b < 3; ++b) {
    CHECK(all.sequences[b].batch == b);
    CHECK(all.sequences[b].start == 0);
  }
}

TEST_CASE("sequences of a pack follow each other, those without positions too") {
  SequencePlan plan;
  plan.add_pack({0, 0, 3, 3, 5000, 5001});
  check_cover(plan);
  const Pieces all = plan.pieces();
  REQUIRE(plan.sequences() == 5);
  CHECK(all.sequences[3].start == 3);
  CHECK(all.sequences[3].length == 4997);
  CHECK(all.sequences[2].length == 0);
}

TEST_CASE("short sequences share a group, up to the work of a long one") {
  SequencePlan plan;
  plan.add_batch(1000, 1);
  check_cover(plan);
  const int64_t groups = plan.pieces().group_count;
  CHECK((groups > 5 && groups < 100));
}

TEST_CASE("no sequences are no groups") {
  CHECK(SequencePlan().pieces().group_count == 0);
  SequencePlan plan;
  plan.add_batch(0, 7);
  plan.add_pack({0});
  CHECK(plan.pieces().group_count == 0);
}
