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

/// What a launch carries: arguments may have 32,764 bytes, and few cost it less.
template <int kWords>
struct TablePiece {
  unsigned char* to;
  int32_t words;
  alignas(16) cux::Words<4> word[kWords];
};
constexpr int kManyWords = 2040, kFewWords = 64;
constexpr size_t kPieceBytes = kManyWords * sizeof(cux::Words<4>);
static_assert(sizeof(TablePiece<kManyWords>) <= 32720);

template <int kWords>
__global__ void __launch_bounds__(1024)
    write_table_piece(const __grid_constant__ TablePiece<kWords> piece) {
  const int i = static_cast<int>(blockIdx.x * 1024 + threadIdx.x);
  if (i < piece.words) cux::store_global(piece.to + 16 * i, piece.word[i]);
}

template <int kWords>
cux::Error launch_table_piece(unsigned char* to, const unsigned char* from, size_t bytes,
                              cux::Stream stream) {
  TablePiece<kWords> piece;
  piece.to = to;
  piece.words = static_cast<int32_t>(bytes / sizeof(cux::Words<4>));
  std::memcpy(piece.word, from, bytes);
  const dim3 blocks((kWords + 1023) / 1024), threads(kWords < 1024 ? kWords : 1024);
  return cux::launch(write_table_piece<kWords>, blocks, threads, 0, stream, piece);
}

/// Writes `now` where `kept` is, piece by piece where they differ. Both have multiples of 16 bytes.
inline cux::Error write_table(const std::vector<unsigned char>& kept,
                              const std::vector<unsigned char>& now, unsigned char* to,
                              cux::Stream stream) {
  for (size_t at = 0; at < now.size(); at += kPieceBytes) {
    const size_t bytes = now.size() - at < kPieceBytes ? now.size() - at : kPieceBytes;
    if (at + bytes <= kept.size() && std::memcmp(kept.data() + at, now.data() + at, bytes) == 0)
      continue;
    const cux::Error error =
        bytes <= kFewWords * sizeof(cux::Words<4>)
            ? launch_table_piece<kFewWords>(to + at, now.data() + at, bytes, stream)
            : launch_table_piece<kManyWords>(to + at, now.data() + at, bytes, stream);
    if (error) return error;
  }
  return nullptr;
}

}  // namespace fulgurite::cuda
