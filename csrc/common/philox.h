// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, https://doi.org/10.1145/2063384.2063405): a counter and a key give four
// random words, on every device the same. W lanes of counters at once; the scalar form is W = 1.
#pragma once

#include <cstdint>

#if defined(__x86_64__) && !defined(__CUDACC__)
#include <immintrin.h>
#endif

#include "common/host_device.h"

namespace fulgurite {

struct PhiloxKey {
  uint32_t low, high;
};

/// (a mod 2³²)·b, of a uint64_t or of a vector of them. Named because g++ 12 makes six instructions of a 64-bit product of
/// vectors (three of AVX-512), and this is one.
template <class U>
FULGURITE_HOST_DEVICE U wide_product(U a, uint32_t b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(U) == 64) return (U)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(U) == 32) return (U)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#endif
#if defined(__x86_64__) && !defined(__CUDACC__)
  if constexpr (sizeof(U) == 16) return (U)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#endif
  return (a & uint64_t{0xffffffffu}) * static_cast<uint64_t>(b);
}

/// Four words per counter, in place. U is uint64_t, or a vector of them; of what goes in, only the low 32 bits count, and the
/// high ones of what comes out are zero.
template <class U>
FULGURITE_HOST_DEVICE void philox4x32(U& c0, U& c1, U& c2, U& c3, PhiloxKey key) {
  constexpr uint32_t kM0 = 0xD2511F53u, kM1 = 0xCD9E8D57u;
  constexpr uint32_t kW0 = 0x9E3779B9u, kW1 = 0xBB67AE85u;
  for (int round = 0; round < 10; ++round) {
    const U p0 = wide_product(c0, kM0), p1 = wide_product(c2, kM1);
    c0 = (p1 >> 32) ^ c1 ^ static_cast<uint64_t>(key.low);
    c2 = (p0 >> 32) ^ c3 ^ static_cast<uint64_t>(key.high);
    c1 = p1;
    c3 = p0;
    key.low += kW0;
    key.high += kW1;
  }
  constexpr uint64_t kWord = 0xffffffffu;
  c0 &= kWord;
  c1 &= kWord;
  c2 &= kWord;
  c3 &= kWord;
}

/// The key of stream `offset` of a seed: the first two words of counter (offset, 0) under the seed. Counters then have all of
/// their four words for what is numbered within a stream.
FULGURITE_HOST_DEVICE PhiloxKey philox_stream(uint64_t seed, uint64_t offset) {
  uint64_t c0 = offset & 0xffffffffu, c1 = offset >> 32, c2 = 0, c3 = 0;
  philox4x32(c0, c1, c2, c3, {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return {static_cast<uint32_t>(c0), static_cast<uint32_t>(c1)};
}

}  // namespace fulgurite
