// CUDA's language and cux's functions for g++: what a kernel calls goes to the executor.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda/host/executor.h"
#include "cuda/host/language.h"
#include "simd/types.h"

#define CUX_UNROLL
#define CUX_NO_UNROLL
#define CUX_DYN_SMEM(name) unsigned char* const name = ::cux::host::dynamic_shared()
#define CUX_SHARED(T, name, n)           \
  static const char name##_declared = 0; \
  T(&name)                               \
  [n] = *static_cast<T(*)[n]>(           \
      ::cux::host::static_shared(&name##_declared, #name, sizeof(T) * (n), alignof(T)))

namespace cux {

using host::Location;

template <int n>
CUX_UNCHECKED Words<n> load_words(const void* from, Location at) {
  Words<n> words;
  if (reinterpret_cast<uintptr_t>(from) % sizeof(words)) host::misaligned(from, sizeof(words), at);
  host::note_read(from, sizeof(words), at);
  std::memcpy(&words, from, sizeof(words));
  return words;
}
inline Words<1> load_global4(const void* from, Location at = Location::current()) {
  return load_words<1>(from, at);
}
inline Words<2> load_global8(const void* from, Location at = Location::current()) {
  return load_words<2>(from, at);
}
inline Words<4> load_global16(const void* from, Location at = Location::current()) {
  return load_words<4>(from, at);
}
template <int n>
CUX_UNCHECKED void store_global(void* to, Words<n> words, Location at = Location::current()) {
  if (reinterpret_cast<uintptr_t>(to) % sizeof(words)) host::misaligned(to, sizeof(words), at);
  host::note_write(to, sizeof(words), at);
  std::memcpy(to, &words, sizeof(words));
}

inline void cp_async16(void* to_shared, const void* from_global, bool wanted,
                       Location at = Location::current()) {
  host::copy_async(to_shared, from_global, wanted, at);
}
inline void cp_async_commit() { host::commit_copies(); }
template <int n>
void cp_async_wait() {
  host::wait_for_copies(n);
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, Location at = Location::current()) {
  host::LdmatrixPayload payload{row, r};
  host::collective(~0u, host::Operation::kLdmatrix, &payload, host::ldmatrix, at);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row,
                              Location at = Location::current()) {
  host::LdmatrixPayload payload{row, r};
  host::collective(~0u, host::Operation::kLdmatrix, &payload, host::ldmatrix_transposed, at);
}
template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                  Location at = Location::current()) {
  host::MmaPayload payload{d, a, b0, b1};
  constexpr bool kBFloat16 = std::is_same_v<T, BFloat16>;
  static_assert(kBFloat16 || std::is_same_v<T, Half>);
  host::collective(~0u, host::Operation::kMma, &payload,
                   kBFloat16 ? host::mma_bfloat16 : host::mma_float16, at);
}

inline void barrier_sync(int id, int threads, Location at = Location::current()) {
  host::named_barrier(id, threads, true, at);
}
inline void barrier_arrive(int id, int threads, Location at = Location::current()) {
  host::named_barrier(id, threads, false, at);
}

template <class T>
uint32_t pack2(float low, float high) {
  constexpr auto rounded = std::is_same_v<T, BFloat16> ? host::bfloat16_of : host::float16_of;
  return rounded(low) | static_cast<uint32_t>(rounded(high)) << 16;
}
template <class T>
void unpack2(uint32_t word, float& low, float& high) {
  constexpr auto widened =
      std::is_same_v<T, BFloat16> ? host::float_of_bfloat16 : host::float_of_float16;
  low = widened(static_cast<uint16_t>(word));
  high = widened(static_cast<uint16_t>(word >> 16));
}
inline float ex2(float x) { return std::exp2(x); }
inline float lg2(float x) { return std::log2(x); }

}  // namespace cux
