// Tiles of rows in shared memory, and their way from and to global memory.
//
// A row is whole chunks of 16 bytes. Where a chunk lies is turned from row to row, so that the eight rows that ldmatrix or eight
// lanes read at once, the same chunk of each, touch all banks, whatever the width.
#pragma once

#include "attention/cuda/params.h"
#include "cuda/launch.h"

namespace fulgurite::cuda {

// Unsigned: what % and / of a signed lane compile to holds ten registers across the loops of the kernels.
__device__ inline unsigned lane_of_warp() { return threadIdx.x % 32; }
__device__ inline unsigned warp_of_block() { return threadIdx.x / 32; }

template <class T, int kWidth>
struct SharedTile {
  static constexpr unsigned kPerChunk = 16 / sizeof(T), kChunks = kWidth / kPerChunk;
  static_assert(kWidth % kPerChunk == 0);
  // Rows begin kChunks mod 8 chunks of banks apart; kTurns of eight rows would begin at the same.
  static constexpr unsigned kTurns = (kChunks & -kChunks) < 8 ? (kChunks & -kChunks) : 8;

  T* data;

  __device__ T* chunk(unsigned row, unsigned c) const {
    return data + (row * kChunks + (c ^ (row / (8 / kTurns) & (kTurns - 1)))) * kPerChunk;
  }
  /// The tile that begins at a row of this one, a multiple of 8.
  __device__ SharedTile from_row(unsigned row) const { return {data + row * kWidth}; }
};

/// Rows of one head.
template <class T>
struct HeadRows {
  const T* data;
  int64_t row_stride, column_stride, rows;
  int32_t width;
};

template <class T>
__device__ inline HeadRows<T> head_rows(const Tensor4& t, int64_t b, int64_t h, int64_t rows,
                                        int64_t width) {
  return {static_cast<const T*>(t.data) + b * t.strides[0] + h * t.strides[1], t.strides[2],
          t.strides[3], rows, static_cast<int32_t>(width)};
}

/// Rows that 16-byte copies can read: chunks side by side at multiples of 16 bytes, a tile of them less than 2³¹ elements long.
inline bool has_wide_rows(const Tensor4& t, int64_t width, int64_t per_chunk) {
  bool aligned = reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && width % per_chunk == 0;
  for (int d = 0; d < 3; ++d) aligned = aligned && t.strides[d] % per_chunk == 0;
  return aligned && t.strides[3] == 1 && t.strides[2] >= 0 && t.strides[2] < int64_t{1} << 23;
}
/// Of queries, keys, values and results, which are contiguous.
inline bool has_wide_rows(const AttentionCudaParams& p) {
  const int64_t per_chunk = p.dtype == Dtype::kFloat32 ? 4 : 8;
  return has_wide_rows(p.query, p.D, per_chunk) && has_wide_rows(p.key, p.D, per_chunk) &&
         has_wide_rows(p.value, p.Dv, per_chunk);
}

/// Rows [row0, row0 + kRows) by cp.async; zeros beyond the rows and the width.
template <int kRows, int kThreads, class T, int kWidth>
__device__ inline void copy_wide(SharedTile<T, kWidth> tile, const HeadRows<T>& from,
                                 int64_t row0) {
  using Tile = SharedTile<T, kWidth>;
  constexpr unsigned kChunks = Tile::kChunks, kStep = kThreads / kChunks;
  const unsigned thread = threadIdx.x;
  const int stride = static_cast<int>(from.row_stride);
  const T* const first = from.data + row0 * from.row_stride;
  const int64_t rest = from.rows - row0;
  const int rows = rest < kRows ? static_cast<int>(rest) : kRows, width = from.width;
  if constexpr (kThreads % kChunks == 0 && kStep % 8 == 0) {
    // A thread keeps its chunk of the row, which takes 20 registers less than the loop below.
    static_assert(kRows % kStep == 0);
    const unsigned row = thread / kChunks, chunk = thread % kChunks;
    const int left = rows - static_cast<int>(row);
    const bool within = static_cast<int>(chunk * Tile::kPerChunk) < width;
    const T* const source = first + static_cast<int>(row) * stride + chunk * Tile::kPerChunk;
    T* const to = tile.chunk(row, chunk);
    CUX_UNROLL
    for (int r = 0; r < kRows; r += kStep)
      cux::cp_async16(to + r * kWidth, source + r * stride, within && r < left);
  } else {
    constexpr unsigned kAll = kRows * kChunks;
    CUX_UNROLL
    for (unsigned i = 0; i < (kAll + kThreads - 1) / kThreads; ++i) {
      const unsigned at = thread + i * kThreads, row = at / kChunks, chunk = at % kChunks;
      const bool wanted =
          static_cast<int>(chunk * Tile::kPerChunk) < width && static_cast<int>(row) < rows;
      const T* const source = first + static_cast<int>(row) * stride + chunk * Tile::kPerChunk;
      if (kAll % kThreads == 0 || at < kAll)
        cux::cp_async16(tile.chunk(row, chunk), source, wanted);
    }
  }
}

/// The same element by element, of any strides; done when it returns.
template <int kRows, int kThreads, class T, int kWidth>
__device__ inline void copy_narrow(SharedTile<T, kWidth> tile, const HeadRows<T>& from,
                                   int64_t row0) {
  using Tile = SharedTile<T, kWidth>;
  constexpr int kChunks = Tile::kChunks, kPerChunk = Tile::kPerChunk;
  for (int at = static_cast<int>(threadIdx.x); at < kRows * kChunks; at += kThreads) {
    const int row = at / kChunks, column = at % kChunks * kPerChunk;
    const T* const source =
        from.data + (row0 + row) * from.row_stride + column * from.column_stride;
    T values[kPerChunk];
    CUX_UNROLL
    for (int e = 0; e < kPerChunk; ++e) {
      values[e] = T{};
      if (row0 + row < from.rows && column + e < from.width)
        values[e] = source[e * from.column_stride];
    }
    cux::Words<4> words;
    __builtin_memcpy(&words, values, sizeof(words));
    *reinterpret_cast<cux::Words<4>*>(tile.chunk(row, at % kChunks)) = words;
  }
}

template <int kRows, int kThreads, class T, int kWidth>
__device__ inline void copy_rows(SharedTile<T, kWidth> tile, const HeadRows<T>& from, int64_t row0,
                                 bool wide) {
  if (wide)
    copy_wide<kRows, kThreads>(tile, from, row0);
  else
    copy_narrow<kRows, kThreads>(tile, from, row0);
}

/// A warp's tile to rows [row0, row0 + kRows) of an output, those that exist: 16 bytes a lane, or element by element.
template <int kRows, class T, int kWidth>
__device__ inline void store_rows(SharedTile<T, kWidth> tile, T* rows_of_head, int64_t row_stride,
                                  int64_t row0, int64_t rows, int32_t width, bool wide) {
  using Tile = SharedTile<T, kWidth>;
  constexpr unsigned kChunks = Tile::kChunks;
  constexpr int kPerChunk = Tile::kPerChunk;
  static_assert(kRows * kChunks % 32 == 0);
  CUX_UNROLL
  for (unsigned i = 0; i < kRows * kChunks / 32; ++i) {
    const unsigned at = lane_of_warp() + i * 32, row = at / kChunks;
    const int column = static_cast<int>(at % kChunks) * kPerChunk;
    const T* const from = tile.chunk(row, at % kChunks);
    T* const to = rows_of_head + (row0 + row) * row_stride + column;
    if (row0 + row >= rows || column >= width) continue;
    if (wide) {
      cux::store_global(to, *reinterpret_cast<const cux::Words<4>*>(from));
    } else {
      for (int e = 0; e < kPerChunk; ++e)
        if (column + e < width) to[e] = from[e];
    }
  }
}

}  // namespace fulgurite::cuda
