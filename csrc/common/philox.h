// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, https://doi.org/10.1145/2063384.2063405): a counter and a key give four
// random words, on every device the same. W lanes of counters at once; the scalar form is W = 1.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace fulgurite {

struct PhiloxKey {
  uint32_t low, high;
};

/// Four words per counter, in place. U is uint64_t, or a vector of them; only the low 32 bits of each count.
template <class U>
FULGURITE_HOST_DEVICE void philox4x32(U& c0, U& c1, U& c2, U& c3, PhiloxKey key) {
  constexpr uint64_t kLow = 0xffffffffu, kM0 = 0xD2511F53u, kM1 = 0xCD9E8D57u;
  constexpr uint32_t kW0 = 0x9E3779B9u, kW1 = 0xBB67AE85u;
  for (int round = 0; round < 10; ++round) {
    const U p0 = c0 * kM0, p1 = c2 * kM1;
    c0 = (p1 >> 32) ^ c1 ^ static_cast<uint64_t>(key.low);
    c2 = (p0 >> 32) ^ c3 ^ static_cast<uint64_t>(key.high);
    c1 = p1 & kLow;
    c3 = p0 & kLow;
    key.low += kW0;
    key.high += kW1;
  }
}

}  // namespace fulgurite
