// What kernels, compiled by g++, call in place of the card. Implemented by the executor (machine.cpp and its neighbours).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>

#include "cuda/host/settings.h"
#include "cuda/host/types.h"

/// The executor says itself what it touches for a kernel, and plainly written accesses of it are not a kernel's.
#define CUX_UNCHECKED __attribute__((no_sanitize_thread, noinline))

namespace cux::host {

using Location = std::source_location;

struct ThreadContext {
  dim3 thread, block, block_size, grid_size;
  int linear = 0, lane = 0, warp = 0;
};
/// Of the thread that runs; null outside of kernels.
extern __thread const ThreadContext* current_thread;

/// Null, or the text of the first report.
const char* run(const void* kernel, dim3 grid, dim3 block_size, size_t dynamic_bytes,
                const std::function<void()>& body);

unsigned char* dynamic_shared();
/// The array of a declaration, `key`, in this block.
void* static_shared(const void* key, const char* name, size_t bytes, size_t alignment);

void barrier(Location at);
void named_barrier(int id, int threads, bool waits, Location at);

enum class Operation { kSyncwarp, kShuffle, kVote, kMatch, kLdmatrix, kMma };
struct Lanes {
  void* payload[32];
  uint32_t mask;
};
using Combine = void (*)(Lanes&);
/// Waits for the lanes of `mask`, then calls combine once, with what each has brought.
void collective(uint32_t mask, Operation operation, void* payload, Combine combine, Location at);
[[noreturn]] void read_of_absent_lane(int lane, int from, uint32_t mask);

/// An access by the running thread that no instrumented instruction makes.
void note_read(const void* from, size_t bytes, Location at);
void note_write(void* to, size_t bytes, Location at);
void note_atomic(void* address, size_t bytes, Location at);
[[noreturn]] void misaligned(const void* address, size_t bytes, Location at);

void copy_async(void* to_shared, const void* from_global, bool wanted, Location at);
void commit_copies();
void wait_for_copies(int groups_left);

struct LdmatrixPayload {
  const void* row;
  uint32_t* r;
};
struct MmaPayload {
  float* d;
  const uint32_t* a;
  uint32_t b0, b1;
};
void ldmatrix(Lanes& lanes);
void ldmatrix_transposed(Lanes& lanes);
void mma_bfloat16(Lanes& lanes);
void mma_float16(Lanes& lanes);

uint16_t bfloat16_of(float x);
uint16_t float16_of(float x);
float float_of_bfloat16(uint16_t bits);
float float_of_float16(uint16_t bits);

/// *p = change(*p), and what was there before.
template <class T, class Change>
CUX_UNCHECKED T read_modify_write(T* p, const Change& change, Location at) {
  note_atomic(p, sizeof(T), at);
  T old;
  std::memcpy(&old, p, sizeof(T));
  const T now = change(old);
  std::memcpy(p, &now, sizeof(T));
  return old;
}

}  // namespace cux::host
