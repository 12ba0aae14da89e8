// Products of a warp on the tensor cores, of tiles in shared memory. A warp has kStrips strips of 16 rows; a lane has rows
// lane/4 and lane/4 + 8 of each, and in tiles of 8 columns columns 2(lane mod 4) and the next.
#pragma once

#include "attention/cuda/kernels/shared_tile.cuh"

namespace fulgurite::cuda {

/// What a lane has of a warp's accumulators: number k of its row n lies in row static_row(n) + lane_row() and column
/// static_column(k) + lane_column() of the warp's.
template <class T, int kStrips>
struct Mma {
  static constexpr int kRowsOfLane = 2 * kStrips, kLanesOfRow = 4, kWarpRows = 16 * kStrips;
  // Lanes that share four columns side by side, and how many of these each has.
  static constexpr int kSharers = 2, kOfFour = 2;
  static constexpr int kScratchBytes = 0;  // of a warp, for multiply_weights

  template <int kColumns>
  using Sums = float[kStrips][kColumns / 8][4];
  template <int kTiles>
  __device__ static float& at(float (&sums)[kStrips][kTiles][4], int n, int k) {
    return sums[n / 2][k / 2][n % 2 * 2 + k % 2];
  }
  template <int kTiles>
  __device__ static float at(const float (&sums)[kStrips][kTiles][4], int n, int k) {
    return sums[n / 2][k / 2][n % 2 * 2 + k % 2];
  }
  __device__ static int static_row(int n) { return n / 2 * 16 + n % 2 * 8; }
  __device__ static int lane_row() { return static_cast<int>(lane_of_warp() / 4); }
  __device__ static int static_column(int k) { return k / 2 * 8 + k % 2; }
  __device__ static int lane_column() { return static_cast<int>(lane_of_warp() % 4 * 2); }

  /// sums += A·Bᵀ: rows of A from a0 on, all rows of B, kDepth deep.
  template <int kDepth, int kTiles>
  __device__ static void multiply_rows(float (&sums)[kStrips][kTiles][4], SharedTile<T, kDepth> a,
                                       unsigned a0, SharedTile<T, kDepth> b) {
    const unsigned lane = lane_of_warp();
    CUX_UNROLL
    for (unsigned k = 0; k < kDepth / 16; ++k) {
      uint32_t rows[kStrips][4];
      CUX_UNROLL
      for (unsigned m = 0; m < kStrips; ++m)
        cux::ldmatrix_x4(rows[m], a.chunk(a0 + m * 16 + lane % 16, 2 * k + lane / 16));
      CUX_UNROLL
      for (unsigned n = 0; n < kTiles / 2; ++n) {
        uint32_t columns[4];
        cux::ldmatrix_x4(columns, b.chunk(n * 16 + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
        CUX_UNROLL
        for (int m = 0; m < kStrips; ++m) {
          cux::mma_m16n8k16<T>(sums[m][2 * n], rows[m], columns[0], columns[1]);
          cux::mma_m16n8k16<T>(sums[m][2 * n + 1], rows[m], columns[2], columns[3]);
        }
      }
    }
  }

  /// sums += W·B: W in accumulators, rounded to T, as deep as B has rows; kWidth columns of B.
  template <int kWidth, int kTiles>
  __device__ static void multiply_weights(float (&sums)[kStrips][kWidth / 8][4],
                                          const float (&weights)[kStrips][kTiles][4],
                                          SharedTile<T, kWidth> b, T* /*scratch*/) {
    const unsigned lane = lane_of_warp();
    CUX_UNROLL
    for (unsigned k = 0; k < kTiles / 2; ++k) {
      uint32_t rows[kStrips][4];
      CUX_UNROLL
      for (int m = 0; m < kStrips; ++m) {
        CUX_UNROLL
        for (int e = 0; e < 4; ++e) {
          const float* const pair = weights[m][2 * k + e / 2] + e % 2 * 2;
          rows[m][e] = cux::pack2<T>(pair[0], pair[1]);
        }
      }
      CUX_UNROLL
      for (unsigned d = 0; d < kWidth / 16; ++d) {
        uint32_t columns[4];
        cux::ldmatrix_x4_trans(columns, b.chunk(k * 16 + lane % 16, 2 * d + lane / 16));
        CUX_UNROLL
        for (int m = 0; m < kStrips; ++m) {
          cux::mma_m16n8k16<T>(sums[m][2 * d], rows[m], columns[0], columns[1]);
          cux::mma_m16n8k16<T>(sums[m][2 * d + 1], rows[m], columns[2], columns[3]);
        }
      }
    }
  }

  /// factor·sums, rounded, to the warp's own tile, one factor for each row of a lane.
  template <int kWidth>
  __device__ static void put_rows(SharedTile<T, kWidth> tile,
                                  const float (&sums)[kStrips][kWidth / 8][4],
                                  const float (&factors)[2 * kStrips]) {
    const unsigned lane = lane_of_warp();
    CUX_UNROLL
    for (unsigned m = 0; m < kStrips; ++m) {
      CUX_UNROLL
      for (unsigned r = 0; r < 2; ++r) {
        CUX_UNROLL
        for (unsigned i = 0; i < kWidth / 8; ++i) {
          const float* const pair = sums[m][i] + 2 * r;
          const uint32_t word =
              cux::pack2<T>(pair[0] * factors[2 * m + r], pair[1] * factors[2 * m + r]);
          T* const to = tile.chunk(m * 16 + r * 8 + lane / 4, i) + lane % 4 * 2;
          *reinterpret_cast<cux::Words<1>*>(to) = {{word}};
        }
      }
    }
  }
};

}  // namespace fulgurite::cuda
