// The elements of a warp's unit, and how they come from memory and go back.
//
//   wide     every operand is dense, at multiples of 16 bytes, and there are 256: a lane has two quads of adjacent elements,
//            quads l and 32 + l. Numbers of 4 bytes lie so in memory for accesses of 16 bytes. Of 16-bit ones such an access
//            brings a lane quads 2l and 2l + 1, of codes one of 8 bytes does: lanes exchange quads.
//   narrow   anything else: a lane has every 32nd of some elements, so that adjacent lanes make adjacent accesses.
#pragma once

#include "optim/cuda/kernels/tensors.cuh"

namespace fulgurite::cuda {

/// A lane's n elements of one operand: as memory has them, then a word each.
template <int n>
struct Lane {
  uint32_t word[n];
};

/// Twice kWords words, two quads; each lane gives one of them to the lane that reads it in the first round, and the other one in
/// the second.
struct Exchange {
  bool second_first, swapped;
  int from[2];

  template <int kWords>
  __device__ void run(Lane<8>& x) const {
    CUX_UNROLL
    for (int j = 0; j < kWords; ++j) {
      const uint32_t low = x.word[j], high = x.word[kWords + j];
      const uint32_t a = __shfl_sync(~0u, second_first ? high : low, from[0]);
      const uint32_t b = __shfl_sync(~0u, second_first ? low : high, from[1]);
      x.word[j] = swapped ? b : a;
      x.word[kWords + j] = swapped ? a : b;
    }
  }
};
/// From quads 2l and 2l + 1 to l and 32 + l.
__device__ inline Exchange to_quads(int lane) {
  const bool odd = lane % 2 != 0;
  const int half = lane / 2;
  return {lane >= 16, odd, {odd ? 16 + half : half, odd ? half : 16 + half}};
}
/// And back.
__device__ inline Exchange to_memory(int lane) {
  const bool upper = lane >= 16;
  return {lane % 2 != 0,
          upper,
          {upper ? 2 * lane - 31 : 2 * lane, upper ? 2 * lane - 32 : 2 * lane + 1}};
}

/// The elements of a wide unit.
class Wide {
 public:
  static constexpr int kPerLane = 8, kElements = 256, kPieces = 1, kPiece = 8;
  static constexpr bool kWide = true;

  __device__ Wide(const AdamwTable&, const AdamwEntry&, int64_t begin, int lane)
      : Wide(begin, lane) {}
  __device__ Wide(int64_t begin, int lane) : begin_(begin), lane_(lane) {}

  __device__ void go_to(int) {}
  /// Elements first(), …, first() + kPiece − 1 of the lane are the piece.
  __device__ int first() const { return 0; }
  __device__ bool has(int) const { return true; }
  /// The row-major index of element i of the lane.
  __device__ int64_t index(int i) const { return begin_ + 4 * lane_ + 128 * (i / 4) + i % 4; }

  /// What load and store take for an operand that begins at `data`, with elements of 1 << shift bytes.
  __device__ unsigned char* base(void* data, uint32_t shift) const {
    return static_cast<unsigned char*>(data) + (begin_ << shift) + (lane_ << (shift == 0 ? 3 : 4));
  }
  template <int kBytes>
  __device__ void load(int, const unsigned char* base, Lane<8>& x) const {
    if constexpr (kBytes == 1) {
      put(x, 0, cux::load_global8(base));
    } else {
      put(x, 0, cux::load_global16(base));
      if constexpr (kBytes == 4) put(x, 4, cux::load_global16(base + 512));
    }
  }
  template <int kBytes>
  __device__ void store(int, unsigned char* base, const Lane<8>& x) const {
    if constexpr (kBytes == 1) {
      cux::store_global(base, cux::Words<2>{{x.word[0], x.word[1]}});
    } else {
      cux::store_global(base, cux::Words<4>{{x.word[0], x.word[1], x.word[2], x.word[3]}});
      if constexpr (kBytes == 4)
        cux::store_global(base + 512, cux::Words<4>{{x.word[4], x.word[5], x.word[6], x.word[7]}});
    }
  }

  /// Between what memory has, kBytes an element, and a word for each element.
  template <int kBytes>
  __device__ void unpack(Lane<8>& x) const {
    static_assert(kBytes == 1 || kBytes == 2);
    constexpr int kEach = 4 / kBytes;
    to_quads(lane_).run<kBytes>(x);
    CUX_UNROLL
    for (int i = kPerLane - 1; i >= 0; --i)
      x.word[i] = x.word[i / kEach] >> (8 * kBytes * (i % kEach)) & ((1u << 8 * kBytes) - 1);
  }
  template <int kBytes>
  __device__ void pack(Lane<8>& x) const {
    static_assert(kBytes == 1 || kBytes == 2);
    constexpr int kEach = 4 / kBytes;
    CUX_UNROLL
    for (int w = 0; w < kPerLane / kEach; ++w) {
      uint32_t word = 0;
      CUX_UNROLL
      for (int i = 0; i < kEach; ++i) word |= x.word[w * kEach + i] << (8 * kBytes * i);
      x.word[w] = word;
    }
    to_memory(lane_).run<kBytes>(x);
  }

 private:
  static __device__ void put(Lane<8>& x, int first, cux::Words<2> w) {
    x.word[first] = w.word[0];
    x.word[first + 1] = w.word[1];
  }
  static __device__ void put(Lane<8>& x, int first, cux::Words<4> w) {
    CUX_UNROLL
    for (int i = 0; i < 4; ++i) x.word[first + i] = w.word[i];
  }

  int64_t begin_;
  int lane_;
};

/// What is left of n ≥ 0 divided by d > 0, which makes n the quotient. CUDA's own division of 64 bits is a call.
__device__ inline int64_t divide(int64_t& n, int64_t d) {
  if ((n | d) >> 32 == 0) {
    const auto low = static_cast<uint32_t>(n), by = static_cast<uint32_t>(d), q = low / by;
    n = q;
    return low - q * by;
  }
  int64_t quotient = 0, rest = 0;
  for (int bit = 62; bit >= 0; --bit) {
    rest = 2 * rest + (n >> bit & 1);
    const bool fits = rest >= d;
    rest -= fits ? d : 0;
    quotient = 2 * quotient + fits;
  }
  n = quotient;
  return rest;
}

/// 32·n elements of any unit, one piece for each of a lane's n elements.
template <int n>
class Narrow {
 public:
  static constexpr int kPerLane = n, kElements = 32 * n, kPieces = n, kPiece = 1;
  static constexpr bool kWide = false;

  __device__ Narrow(const AdamwTable& table, const AdamwEntry& entry, int64_t begin, int lane)
      : sizes_(table.layouts + entry.walk.layout),
        dims_(entry.walk.dims),
        first_(begin + lane),
        end_(entry.walk.numel) {}
  /// Of dense memory.
  __device__ Narrow(int64_t begin, int64_t numel, int lane)
      : sizes_(nullptr), dims_(0), first_(begin + lane), end_(numel) {}

  /// Finds element i of the lane.
  __device__ void go_to(int i) {
    piece_ = i;
    int64_t rest = first_ + 32 * i;
    if (dims_ == 0 || !has(i)) {
      CUX_UNROLL
      for (int k = 0; k < kAdamwOperands; ++k) at_[k] = rest;
      return;
    }
    CUX_UNROLL
    for (int k = 0; k < kAdamwOperands; ++k) at_[k] = 0;
    for (int d = dims_ - 1; d >= 0; --d) {
      const int64_t index = divide(rest, sizes_[d]);
      const int64_t* const strides = sizes_ + dims_ + d * kAdamwOperands;
      CUX_UNROLL
      for (int k = 0; k < kAdamwOperands; ++k) at_[k] += index * strides[k];
    }
  }
  __device__ int first() const { return piece_; }
  __device__ bool has(int i) const { return first_ + 32 * i < end_; }
  __device__ int64_t index(int) const { return at_[kIndex]; }

  __device__ unsigned char* base(void* data, uint32_t) const {
    return static_cast<unsigned char*>(data);
  }
  template <int kBytes>
  __device__ void load(int k, const unsigned char* base, Lane<n>& x) const {
    using T = Unsigned<kBytes>;
    x.word[piece_] = has(piece_) ? reinterpret_cast<const T*>(base)[at_[k]] : 0;
  }
  template <int kBytes>
  __device__ void store(int k, unsigned char* base, const Lane<n>& x) const {
    using T = Unsigned<kBytes>;
    if (has(piece_)) reinterpret_cast<T*>(base)[at_[k]] = static_cast<T>(x.word[piece_]);
  }

  template <int kBytes>
  __device__ void unpack(Lane<n>&) const {}
  template <int kBytes>
  __device__ void pack(Lane<n>&) const {}

 private:
  template <int kBytes>
  using Unsigned =
      std::conditional_t<kBytes == 4, uint32_t, std::conditional_t<kBytes == 2, uint16_t, uint8_t>>;

  const int64_t* sizes_;
  int dims_, piece_ = 0;
  int64_t first_, end_;
  int64_t at_[kAdamwOperands];
};

}  // namespace fulgurite::cuda
