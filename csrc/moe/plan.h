// From the sizes of a call of the experts, and how many rows each of them has, to what the kernels go through: segments, and parts of
// neighbouring experts. Operands need the memory of one part, and most of them are still in the caches when the next kernel reads
// them.
#pragma once

#include <cstdint>
#include <vector>

#include "moe/rules/problem.h"

namespace fulgurite {

struct ExpertSizes {
  int64_t T, K, E, H, I, width;

  /// Nothing to compute: every result and every gradient is 0.
  bool nothing() const { return T == 0 || K == 0 || E == 0 || H == 0; }
};

/// The rows of each expert, cut into at most `rows` each.
std::vector<Segment> segments_of(const int64_t* offsets, int64_t E, int64_t rows);

/// Neighbouring experts and their assignments: a call of its own, but that a token's sum goes on from part to part.
struct ExpertsPart {
  int64_t first_expert, experts;
  int64_t first, rows;           // sorted positions
  const int32_t* assignments;    // (rows)
  std::vector<int64_t> offsets;  // (experts + 1), from 0
  std::vector<Segment> segments;
  bool begins, ends;  // the first part, the last one
};

/// How many parts `rows` make that are worth `least` multiplications each. A part reads and writes the sums of every token, so
/// there are at most K.
int64_t count_parts(const ExpertSizes& sizes, int64_t rows, double least);

/// At most `count` parts of about as many rows. offsets (E+1): of the experts' rows; permutation: the assignments of these.
std::vector<ExpertsPart> cut_into_parts(const std::vector<int64_t>& offsets,
                                        const int32_t* permutation, int64_t count,
                                        int64_t segment_rows);

/// Tokens that one task adds up: `rows` of each expert, to pay for packing its matrix, and at most `longest`.
int64_t tokens_per_task(const ExpertSizes& sizes, int64_t rows, int64_t longest);

}  // namespace fulgurite
