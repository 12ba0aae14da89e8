// Writes a table into the card's memory: its bytes are arguments of launches, so nothing is copied that the host would have to
// wait for or keep, and a captured graph has them in it.
//
// Reads:         its arguments
// Writes:        the table, 16 bytes a thread
// Task:          a launch is a piece
// Order of sums: none
#pragma once

#include <cstring>
#include <vector>

#include "cuda/launch.h"

namespace fulgurite::cuda {

/// As much as a launch takes: arguments may have 32,764 bytes.
struct TablePiece {
  unsigned char* to;
  int32_t words;
  alignas(16) cux::Words<4> word[2040];
};
constexpr size_t kPieceBytes = sizeof(TablePiece::word);
static_assert(sizeof(TablePiece) <= 32720);

static __global__ void __launch_bounds__(1024)
    write_table_piece(const __grid_constant__ TablePiece piece) {
  const int i = static_cast<int>(blockIdx.x * 1024 + threadIdx.x);
  if (i < piece.words) cux::store_global(piece.to + 16 * i, piece.word[i]);
}

/// Writes `now` where `kept` is, piece by piece where they differ. Both have multiples of 16 bytes.
inline cux::Error write_table(const std::vector<unsigned char>& kept,
                              const std::vector<unsigned char>& now, unsigned char* to,
                              cux::Stream stream) {
  for (size_t at = 0; at < now.size(); at += kPieceBytes) {
    const size_t bytes = now.size() - at < kPieceBytes ? now.size() - at : kPieceBytes;
    if (at + bytes <= kept.size() && std::memcmp(kept.data() + at, now.data() + at, bytes) == 0)
      continue;
    TablePiece piece;
    piece.to = to + at;
    piece.words = static_cast<int32_t>(bytes / 16);
    std::memcpy(piece.word, now.data() + at, bytes);
    const auto blocks = static_cast<unsigned>((piece.words + 1023) / 1024);
    const cux::Error error =
        cux::launch(write_table_piece, dim3(blocks), dim3(1024), 0, stream, piece);
    if (error) return error;
  }
  return nullptr;
}

}  // namespace fulgurite::cuda
