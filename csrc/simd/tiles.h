// AMX tiles, with an emulation that computes what the instructions compute, in their order, so a kernel written on top is
// tested on any machine.
//
// A tile is up to 16 rows of up to 64 bytes. C += A·B takes C (M×N float32), A (M×2P bfloat16) and B in pairs (P rows of
// N pairs: row p holds B[2p][n], B[2p+1][n] for every n), M, N, P ≤ 16. As Intel's manual defines it:
//   even = Σ_p A[m][2p]·B[2p][n]    odd = Σ_p A[m][2p+1]·B[2p+1][n]    C[m][n] += even + odd
// each sum a chain of float32 fma from zero in the order of p, rounded to nearest even; subnormals as in dot_pairs.h.
#pragma once

#include "simd/dot_pairs.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

inline constexpr int kTileRegisters = 8, kTileMaxRows = 16, kTileMaxBytes = 64;

/// Rows and bytes a row of one tile register; {0, 0}: not used.
struct TileShape {
  uint8_t rows;
  uint16_t row_bytes;
};

FULGURITE_INLINE float flushed_sum(float a, float b) {
  return flush_subnormal(flush_subnormal(a) + flush_subnormal(b));
}

/// Tile registers of one thread from construction to destruction, in memory. Registers are template arguments because the
/// instructions name them; a register's shape is that of the constructor.
class EmulatedTiles {
 public:
  explicit EmulatedTiles(const TileShape (&shapes)[kTileRegisters]) {
    for (int t = 0; t < kTileRegisters; ++t) shapes_[t] = shapes[t];
  }
  EmulatedTiles(const EmulatedTiles&) = delete;
  EmulatedTiles& operator=(const EmulatedTiles&) = delete;

  template <int T>
  void zero() {
    __builtin_memset(bytes_[T], 0, sizeof(bytes_[T]));
  }
  /// Rows at p, p + stride, …: stride in bytes. The rest of the register becomes zero.
  template <int T>
  void load(const void* p, int64_t stride) {
    zero<T>();
    for (int r = 0; r < shapes_[T].rows; ++r)
      __builtin_memcpy(bytes_[T][r], static_cast<const char*>(p) + r * stride,
                       shapes_[T].row_bytes);
  }
  template <int T>
  void store(void* p, int64_t stride) const {
    for (int r = 0; r < shapes_[T].rows; ++r)
      __builtin_memcpy(static_cast<char*>(p) + r * stride, bytes_[T][r], shapes_[T].row_bytes);
  }
  /// C += A·B.
  template <int C, int A, int B>
  void dot_bfloat16() {
    for (int m = 0; m < shapes_[C].rows; ++m)
      for (int n = 0; n < shapes_[C].row_bytes / 4; ++n) {
        float even = 0, odd = 0;
        for (int p = 0; p < shapes_[A].row_bytes / 4; ++p) {
          even = flushed_fma(at<A>(m, 2 * p), at<B>(p, 2 * n), even);
          odd = flushed_fma(at<A>(m, 2 * p + 1), at<B>(p, 2 * n + 1), odd);
        }
        float c;
        __builtin_memcpy(&c, bytes_[C][m] + 4 * n, 4);
        c = flushed_sum(c, flushed_sum(even, odd));
        __builtin_memcpy(bytes_[C][m] + 4 * n, &c, 4);
      }
  }

 private:
  template <int T>
  uint16_t at(int row, int i) const {
    uint16_t bits;
    __builtin_memcpy(&bits, bytes_[T][row] + 2 * i, 2);
    return bits;
  }

  alignas(64) unsigned char bytes_[kTileRegisters][kTileMaxRows][kTileMaxBytes] = {};
  TileShape shapes_[kTileRegisters];
};

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
/// The same on the processor's registers. Assembly, because g++'s intrinsics are macros that paste the register's number
/// into the instruction and so take no template argument. There is one file of registers a thread: one object at a time.
class HardwareTiles {
 public:
  explicit HardwareTiles(const TileShape (&shapes)[kTileRegisters]) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    static_assert(sizeof(config) == 64);
    for (int t = 0; t < kTileRegisters; ++t) {
      config.row_bytes[t] = shapes[t].row_bytes;
      config.rows[t] = shapes[t].rows;
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~HardwareTiles() { asm volatile("tilerelease"); }
  HardwareTiles(const HardwareTiles&) = delete;
  HardwareTiles& operator=(const HardwareTiles&) = delete;

  template <int T>
  FULGURITE_INLINE void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
  }
  template <int T>
  FULGURITE_INLINE void load(const void* p, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(T) : "memory");
  }
  template <int T>
  FULGURITE_INLINE void store(void* p, int64_t stride) const {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(T) : "memory");
  }
  template <int C, int A, int B>
  FULGURITE_INLINE void dot_bfloat16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};
using Tiles = HardwareTiles;
#else
using Tiles = EmulatedTiles;
#endif

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
