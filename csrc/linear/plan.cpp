#include "linear/plan.h"

#include <algorithm>

#include "common/ceil_div.h"

namespace fulgurite {

void SequencePlan::add_batch(int64_t B, int64_t L) {
  for (int64_t b = 0; b < B; ++b) add(b, 0, L);
}

void SequencePlan::add_pack(const std::vector<int64_t>& offsets, int64_t batch) {
  for (size_t s = 0; s + 1 < offsets.size(); ++s)
    add(batch, offsets[s], offsets[s + 1] - offsets[s]);
}

void SequencePlan::add(int64_t batch, int64_t start, int64_t length) {
  const int64_t sequence = sequences();
  spans_.push_back({batch, start, length, blocks_});
  blocks_ += ceil_div(length, kKeptEvery);
  int64_t begin = 0;
  do {  // a sequence without positions is a piece too: it has states
    const int64_t end = std::min(length, begin + kPiecePositions);
    add_piece({sequence, begin, end});
    begin = end;
  } while (begin < length);
}

/// Short pieces are one group with their neighbours until that has as much work as a long one.
void SequencePlan::add_piece(const Piece& piece) {
  constexpr int64_t kStart = 16;  // what a piece costs besides its positions
  const int64_t work = piece.end - piece.begin + kStart;
  if (groups_.size() == 1 || work_ + work > kPiecePositions + kStart) {
    groups_.push_back(groups_.back());
    work_ = 0;
  }
  work_ += work;
  pieces_.push_back(piece);
  groups_.back() = static_cast<int64_t>(pieces_.size());
}

Pieces SequencePlan::pieces() const {
  return {spans_.data(), pieces_.data(), groups_.data(), static_cast<int64_t>(groups_.size()) - 1};
}

}  // namespace fulgurite
