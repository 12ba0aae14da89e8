// From the sizes of a call to its sequences, and to pieces of them that are one task's work.
#pragma once

#include <cstdint>
#include <vector>

#include "linear/rules/problem.h"

namespace fulgurite {

/// Positions of a piece at most, and of a group.
inline constexpr int64_t kPiecePositions = 1024;

class SequencePlan {
 public:
  /// Every batch entry a sequence of L positions.
  void add_batch(int64_t B, int64_t L);
  /// Sequences of a pack, which is one batch entry: offsets rise from 0.
  void add_pack(const std::vector<int64_t>& offsets, int64_t batch = 0);

  int64_t sequences() const { return static_cast<int64_t>(spans_.size()); }
  /// Blocks of kKeptEvery positions, of all sequences.
  int64_t blocks() const { return blocks_; }
  /// Valid as long as the plan, until something is added.
  Pieces pieces() const;

 private:
  void add(int64_t batch, int64_t start, int64_t length);
  void add_piece(const Piece& piece);

  std::vector<Span> spans_;
  std::vector<Piece> pieces_;
  std::vector<int64_t> groups_{0};  // the first piece of each, and an end
  int64_t blocks_ = 0;
  int64_t work_ = 0;  // of the last group
};

}  // namespace fulgurite
