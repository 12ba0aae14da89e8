// Products of a warp in float32 without tensor cores, with the interface of mma.cuh: 4 × 8 lanes, kRows rows each. A lane's rows
// lie so that a warp's stores of weights meet different banks.
#pragma once

#include "attention/cuda/kernels/shared_tile.cuh"

namespace fulgurite::cuda {

/// kKeys: the columns of weights.
template <int kRows, int kKeys>
struct Fma {
  static constexpr int kRowsOfLane = kRows, kLanesOfRow = 8, kWarpRows = 4 * kRows;
  static constexpr int kSharers = 4, kOfFour = 1;
  static constexpr int kScratchBytes = kWarpRows * kKeys * 4;
  static_assert(kRows % 4 == 0);

  template <int kColumns>
  using Sums = float[kRows][kColumns / 8];
  template <int n>
  __device__ static float& at(float (&sums)[kRows][n], int row, int k) {
    return sums[row][k];
  }
  template <int n>
  __device__ static float at(const float (&sums)[kRows][n], int row, int k) {
    return sums[row][k];
  }
  __device__ static int static_row(int n) { return n / 2 * 8 + n % 2; }
  __device__ static int lane_row() { return static_cast<int>(lane_of_warp() / 8 * 2); }
  __device__ static int static_column(int k) { return 8 * k; }
  __device__ static int lane_column() { return static_cast<int>(lane_of_warp() % 8); }

  struct Chunk {
    float number[4];
  };
  __device__ static Chunk load(const float* chunk) {
    const cux::Words<4> words = *reinterpret_cast<const cux::Words<4>*>(chunk);
    Chunk numbers;
    __builtin_memcpy(&numbers, &words, sizeof(numbers));
    return numbers;
  }

  /// sums += A·Bᵀ: rows of A from a0 on, all rows of B.
  template <int kDepth, int kColumns>
  __device__ static void multiply_rows(float (&sums)[kRows][kColumns], SharedTile<float, kDepth> a,
                                       unsigned a0, SharedTile<float, kDepth> b) {
    const unsigned row0 = a0 + static_cast<unsigned>(lane_row()),
                   column0 = static_cast<unsigned>(lane_column());
    for (unsigned d = 0; d < kDepth / 4; ++d) {
      Chunk rows[kRows];
      CUX_UNROLL
      for (int n = 0; n < kRows; ++n)
        rows[n] = load(a.chunk(row0 + static_cast<unsigned>(static_row(n)), d));
      CUX_UNROLL
      for (int k = 0; k < kColumns; ++k) {
        const Chunk column = load(b.chunk(column0 + static_cast<unsigned>(static_column(k)), d));
        CUX_UNROLL
        for (int n = 0; n < kRows; ++n) {
          CUX_UNROLL
          for (int e = 0; e < 4; ++e)
            sums[n][k] = fmaf(rows[n].number[e], column.number[e], sums[n][k]);
        }
      }
    }
  }

  /// sums += W·B, W by way of the warp's scratch. Of B a lane has the chunks lane mod 8, and every eighth after.
  template <int kColumns, int kWidth>
  __device__ static void multiply_weights(float (&sums)[kRows][kColumns],
                                          const float (&weights)[kRows][kKeys / 8],
                                          SharedTile<float, kWidth> b, float* scratch) {
    const SharedTile<float, kKeys> tile{scratch};
    const unsigned row0 = static_cast<unsigned>(lane_row());
    __syncwarp();  // the last tile's weights have been read
    CUX_UNROLL
    for (int n = 0; n < kRows; ++n) {
      CUX_UNROLL
      for (int k = 0; k < kKeys / 8; ++k) {
        const auto column = static_cast<unsigned>(static_column(k) + lane_column());
        tile.chunk(row0 + static_cast<unsigned>(static_row(n)), column / 4)[column % 4] =
            weights[n][k];
      }
    }
    __syncwarp();
    for (unsigned key = 0; key < kKeys; key += 4) {
      Chunk rows[kRows];
      CUX_UNROLL
      for (int n = 0; n < kRows; ++n)
        rows[n] = load(tile.chunk(row0 + static_cast<unsigned>(static_row(n)), key / 4));
      CUX_UNROLL
      for (unsigned e = 0; e < 4; ++e) {
        CUX_UNROLL
        for (unsigned d = 0; d < kWidth / 32; ++d) {
          const Chunk value = load(b.chunk(key + e, lane_of_warp() % 8 + 8 * d));
          CUX_UNROLL
          for (int n = 0; n < kRows; ++n) {
            CUX_UNROLL
            for (unsigned c = 0; c < 4; ++c)
              sums[n][4 * d + c] = fmaf(rows[n].number[e], value.number[c], sums[n][4 * d + c]);
          }
        }
      }
    }
  }

  /// factor·sums to the warp's own tile.
  template <int kColumns, int kWidth>
  __device__ static void put_rows(SharedTile<float, kWidth> tile,
                                  const float (&sums)[kRows][kColumns],
                                  const float (&factors)[kRows]) {
    CUX_UNROLL
    for (int n = 0; n < kRows; ++n) {
      CUX_UNROLL
      for (unsigned d = 0; d < kWidth / 32; ++d) {
        Chunk numbers;
        CUX_UNROLL
        for (unsigned c = 0; c < 4; ++c) numbers.number[c] = sums[n][4 * d + c] * factors[n];
        cux::Words<4> words;
        __builtin_memcpy(&words, &numbers, sizeof(words));
        float* const to = tile.chunk(static_cast<unsigned>(static_row(n) + lane_row()),
                                     lane_of_warp() % 8 + 8 * d);
        *reinterpret_cast<cux::Words<4>*>(to) = words;
      }
    }
  }
};

}  // namespace fulgurite::cuda
