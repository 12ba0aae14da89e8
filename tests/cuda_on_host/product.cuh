// A product of matrices as small as one can be that uses what kernels of the library use: copies beside work, swizzled shared
// memory, ldmatrix and mma. It tests cux itself, on the host and through nvcc, and is what docs/internals/cuda.md explains.
//
//   C = A·Bᵀ      A (M,K), B (N,K) of T, rows of K contiguous and at multiples of 16 bytes (K a multiple of 8), C (M,N) float32
//
// Reads:         A and B once for each tile of C
// Writes:        C
// Task:          a block of 4 warps is a tile of 64 × 64 of C, a warp 32 × 32 of it
// Order of sums: k upwards by 16, each 16 as the tensor core adds them
#pragma once

#include "cuda/launch.h"

namespace product {

constexpr int kTile = 64, kDepth = 32, kThreads = 128, kStages = 2;
constexpr int kChunk = 8, kChunks = kDepth / kChunk;  // a chunk: the 16 bytes of one copy
constexpr int kTileBytes = kTile * kDepth * 2;
constexpr int kSharedBytes = kStages * 2 * kTileBytes;

template <class T>
struct Params {
  const T *a, *b;
  float* c;
  int64_t M, N, K;
};

/// Where a chunk of a row lies: eight rows that ldmatrix reads at once touch all banks.
__device__ inline unsigned char* chunk_at(unsigned char* tile, int row, int chunk) {
  return tile + (row * kChunks + (chunk ^ (row >> 1 & 3))) * 16;
}

/// 64 rows of 32 elements from (row0, k0) on; zeros beyond the matrix.
template <class T>
__device__ void copy_tile(unsigned char* tile, const T* matrix, int64_t rows, int64_t K,
                          int64_t row0, int64_t k0) {
  for (int i = static_cast<int>(threadIdx.x); i < kTile * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const int64_t k = k0 + chunk * kChunk;
    const bool inside = row0 + row < rows && k < K;
    cux::cp_async16(chunk_at(tile, row, chunk), inside ? matrix + (row0 + row) * K + k : matrix,
                    inside);
  }
}

/// sums += the warp's 32 × 32 of the tiles' product.
template <class T>
__device__ void multiply_tiles(float (&sums)[2][4][4], unsigned char* a_tile, unsigned char* b_tile,
                               int row0, int column0, int lane) {
  CUX_UNROLL
  for (int k = 0; k < kChunks; k += 2) {
    uint32_t a[2][4], b[2][4];
    CUX_UNROLL
    for (int i = 0; i < 2; ++i) {
      cux::ldmatrix_x4(a[i], chunk_at(a_tile, row0 + 16 * i + lane % 16, k + lane / 16));
      cux::ldmatrix_x4(
          b[i], chunk_at(b_tile, column0 + 16 * i + lane / 16 * 8 + lane % 8, k + lane / 8 % 2));
    }
    CUX_UNROLL
    for (int i = 0; i < 2; ++i) {
      CUX_UNROLL
      for (int j = 0; j < 4; ++j) {
        const uint32_t* const pair = b[j / 2] + j % 2 * 2;
        cux::mma_m16n8k16<T>(sums[i][j], a[i], pair[0], pair[1]);
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) multiply(Params<T> p) {
  CUX_DYN_SMEM(shared);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int row0 = warp / 2 * 32, column0 = warp % 2 * 32;
  const int64_t i0 = static_cast<int64_t>(blockIdx.y) * kTile,
                j0 = static_cast<int64_t>(blockIdx.x) * kTile;
  const auto tile = [&](int64_t step, int side) {
    return shared + (step % kStages * 2 + side) * kTileBytes;
  };
  const auto copy = [&](int64_t step) {
    copy_tile(tile(step, 0), p.a, p.M, p.K, i0, step * kDepth);
    copy_tile(tile(step, 1), p.b, p.N, p.K, j0, step * kDepth);
  };

  float sums[2][4][4] = {};
  const int64_t steps = (p.K + kDepth - 1) / kDepth;
  copy(0);
  cux::cp_async_commit();
  for (int64_t step = 0; step < steps; ++step) {
    if (step + 1 < steps) copy(step + 1);
    cux::cp_async_commit();
    cux::cp_async_wait<1>();
    __syncthreads();
    multiply_tiles<T>(sums, tile(step, 0), tile(step, 1), row0, column0, lane);
    __syncthreads();  // the next copies go to where this step was read
  }
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 4; ++j)
      for (int e = 0; e < 4; ++e) {
        const int64_t row = i0 + row0 + 16 * i + lane / 4 + 8 * (e / 2),
                      column = j0 + column0 + 8 * j + lane % 4 * 2 + e % 2;
        if (row < p.M && column < p.N) p.c[row * p.N + column] = sums[i][j][e];
      }
}

template <class T>
cux::Error launch(const Params<T>& p, cux::Stream stream) {
  const dim3 grid(static_cast<unsigned>((p.N + kTile - 1) / kTile),
                  static_cast<unsigned>((p.M + kTile - 1) / kTile));
  return cux::launch(multiply<T>, grid, dim3(kThreads), kSharedBytes, stream, p);
}

}  // namespace product
