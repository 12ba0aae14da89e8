// Kernels with a bug where `bug` says so, and their launches. The line of the bug ends in "// bug: <name>".
#pragma once

#include <string>
#include <vector>

#include "cuda/host/memory.h"
#include "cuda/launch.h"

namespace planted {

using cux::Error;
using cux::Words;
using cux::host::Array;

constexpr unsigned kAll = ~0u;

Error run(void (*kernel)(float*, bool), bool bug, unsigned blocks, unsigned threads,
          size_t elements = 1024, size_t shared_bytes = 4096) {
  const Array<float> data(std::vector<float>(elements, 1.f));
  return cux::launch(kernel, dim3(blocks), dim3(threads), shared_bytes, nullptr, data.data(), bug);
}

// ---- races

void missing_syncthreads(float* out, bool bug) {
  CUX_SHARED(float, sums, 4);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = 1;
  if (!bug) __syncthreads();
  if (threadIdx.x == 0)
    for (int w = 0; w < 4; ++w) out[w] = sums[w];  // bug: missing_syncthreads
}
void missing_second_syncthreads(float* out, bool bug) {
  CUX_SHARED(float, values, 128);
  for (int turn = 0; turn < 2; ++turn) {
    values[threadIdx.x] = static_cast<float>(turn);  // bug: missing_second_syncthreads
    __syncthreads();
    out[threadIdx.x] = values[127 - threadIdx.x];
    if (!bug) __syncthreads();
  }
}
void missing_syncwarp(float* out, bool bug) {
  CUX_SHARED(float, values, 32);
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (!bug) __syncwarp();
  out[threadIdx.x] = values[threadIdx.x ^ 1];  // bug: missing_syncwarp
}
void syncwarp_of_others(float* out, bool bug) {
  CUX_SHARED(float, values, 32);
  const bool upper = threadIdx.x >= 16;
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncwarp(upper ? 0xffff0000u : 0x0000ffffu);
  const unsigned from = bug ? 31 - threadIdx.x : threadIdx.x ^ 1;
  out[threadIdx.x] = values[from];  // bug: syncwarp_of_others
}
void shared_counter(float* count, bool bug) {
  CUX_SHARED(float, sum, 1);
  if (threadIdx.x == 0) sum[0] = 0;
  __syncthreads();
  if (bug)
    sum[0] += 1;  // bug: shared_counter
  else
    atomicAdd(&sum[0], 1);
  __syncthreads();
  if (threadIdx.x == 0) count[blockIdx.x] = sum[0];
}
void counter_of_blocks(float* count, bool bug) {
  if (threadIdx.x != 0) return;
  if (bug)
    count[0] += 1;  // bug: counter_of_blocks
  else
    atomicAdd(&count[0], 1);
}
void wrong_named_barrier(float* out, bool bug) {  // warps 0 and 1 hand over to 2 and 3
  CUX_SHARED(float, values, 64);
  if (threadIdx.x < 64) {
    values[threadIdx.x] = 2;
    cux::barrier_arrive(1, 128);
  } else {
    if (!bug) cux::barrier_sync(1, 128);
    out[threadIdx.x] = values[threadIdx.x - 64];  // bug: wrong_named_barrier
    if (bug) cux::barrier_sync(1, 128);
  }
}

// ---- memory that nothing has written

void unwritten_shared(float* out, bool bug) {
  CUX_SHARED(float, values, 32);
  if (!bug || threadIdx.x < 31) values[threadIdx.x] = 3;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x ^ 1];  // bug: unwritten_shared
}
void sums_workspace(const float* workspace, float* out) {
  out[threadIdx.x] = workspace[threadIdx.x];  // bug: unwritten_global
}
void fills_workspace(float* workspace, unsigned written) {
  if (threadIdx.x < written) workspace[threadIdx.x] = 4;
}
Error unwritten_global(bool bug) {
  const Array<float> workspace(32), out(32);
  const unsigned written = bug ? 31 : 32;
  if (const Error error =
          cux::launch(fills_workspace, dim3(1), dim3(32), 0, nullptr, workspace.data(), written))
    return error;
  const float* const read = workspace.data();
  return cux::launch(sums_workspace, dim3(1), dim3(32), 0, nullptr, read, out.data());
}

// ---- asynchronous copies

void copies(float* data, int left, bool commits) {
  CUX_DYN_SMEM(bytes);
  auto* const shared = reinterpret_cast<float*>(bytes);
  for (unsigned stage = 0; stage < 2; ++stage) {
    const unsigned at = 128 * stage + 4 * threadIdx.x;
    cux::cp_async16(shared + at, data + at, true);  // bug: copy_uncommitted
    if (commits || stage == 0) cux::cp_async_commit();
  }
  if (left == 0) cux::cp_async_wait<0>();
  if (left == 1) cux::cp_async_wait<1>();
  __syncthreads();
  if (left == 1) return;
  data[512 + threadIdx.x] = shared[threadIdx.x];
}
void copy_not_waited_for(float* data, bool bug) {
  CUX_DYN_SMEM(bytes);
  auto* const shared = reinterpret_cast<float*>(bytes);
  cux::cp_async16(shared + 4 * threadIdx.x, data + 4 * threadIdx.x, true);
  cux::cp_async_commit();
  if (!bug) cux::cp_async_wait<0>();
  __syncthreads();
  data[512 + threadIdx.x] = shared[127 - threadIdx.x];  // bug: copy_not_waited_for
}
void one_group_too_many(float* data, bool bug) {
  CUX_DYN_SMEM(bytes);
  auto* const shared = reinterpret_cast<float*>(bytes);
  for (int stage = 0; stage < 3; ++stage) {
    cux::cp_async16(shared + 128 * stage + 4 * threadIdx.x, data + 128 * stage + 4 * threadIdx.x,
                    true);
    cux::cp_async_commit();
  }
  bug ? cux::cp_async_wait<2>() : cux::cp_async_wait<1>();
  __syncthreads();
  data[512 + threadIdx.x] = shared[128 + threadIdx.x];  // bug: one_group_too_many
}
void copy_of_another_thread(float* data, bool bug) {  // every thread waits for its own copies only
  CUX_DYN_SMEM(bytes);
  auto* const shared = reinterpret_cast<float*>(bytes);
  cux::cp_async16(shared + 4 * threadIdx.x, data + 4 * threadIdx.x, true);
  cux::cp_async_commit();
  cux::cp_async_wait<0>();
  if (!bug) __syncthreads();
  data[512 + threadIdx.x] = shared[127 - threadIdx.x];  // bug: copy_of_another_thread
}
Error copy_uncommitted(bool bug) {
  const Array<float> data(std::vector<float>(1024, 1.f));
  return cux::launch(copies, dim3(1), dim3(32), 4096, nullptr, data.data(), bug ? 1 : 0, !bug);
}

// ---- barriers and warps

void divergent_barrier(float* out, bool bug) {
  if (bug && threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();  // bug: divergent_barrier
  out[threadIdx.x] = 5;
}
void barrier_in_a_branch(float* out, bool bug) {
  if (!bug || threadIdx.x < 40) {
    __syncthreads();  // bug: barrier_in_a_branch
  } else {
    __syncwarp();
  }
  out[threadIdx.x] = 6;
}
void divergent_warp(float* out, bool bug) {
  float x = static_cast<float>(threadIdx.x);
  if (bug && threadIdx.x < 16)
    x += static_cast<float>(__any_sync(kAll, 1));
  else
    x += __shfl_xor_sync(kAll, x, 1);  // bug: divergent_warp
  out[threadIdx.x] = x;
}
void mask_mismatch(float* out, bool bug) {
  const unsigned lanes = threadIdx.x < 16 ? (bug ? 0x0001ffffu : 0x0000ffffu) : 0xffff0000u;
  out[threadIdx.x] = __shfl_xor_sync(lanes, 1.f, 1);  // bug: mask_mismatch
}
void mask_without_self(float* out, bool bug) {
  const unsigned votes = __ballot_sync(bug ? 0x7fffffffu : kAll, 1);  // bug: mask_without_self
  out[threadIdx.x] = static_cast<float>(votes);
}
void shuffle_after_exit(float* out, bool bug) {
  if (bug && threadIdx.x >= 20) return;
  float x = 1;
  for (int by = 16; by > 0; by /= 2) x += __shfl_xor_sync(kAll, x, by);  // bug: shuffle_after_exit
  out[threadIdx.x] = x;
}
void partial_mma(float* out, bool bug) {
  float d[4] = {0, 0, 0, 0};
  const uint32_t a[4] = {0, 0, 0, 0};
  if (!bug || threadIdx.x < 31) cux::mma_m16n8k16<cux::BFloat16>(d, a, 0u, 0u);  // bug: partial_mma
  out[threadIdx.x] = d[0];
}
void named_barrier_of_too_few(float* out, bool bug) {
  if (threadIdx.x < 64) cux::barrier_sync(2, bug ? 96 : 64);  // bug: named_barrier_of_too_few
  out[threadIdx.x] = 7;
}

// ---- bounds and alignment

void past_dynamic_shared(float* out, bool bug) {
  CUX_DYN_SMEM(bytes);
  auto* const shared = reinterpret_cast<float*>(bytes);
  shared[threadIdx.x + (bug && threadIdx.x == 31)] = 1;  // bug: past_dynamic_shared
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x];
}
void before_dynamic_shared(float* out, bool bug) {
  CUX_DYN_SMEM(bytes);
  auto* const shared = reinterpret_cast<float*>(bytes);
  shared[static_cast<int>(threadIdx.x) - (bug ? 1 : 0)] = 1;  // bug: before_dynamic_shared
  out[threadIdx.x] = 1;
}
void past_static_shared(float* out, bool bug) {
  CUX_SHARED(float, first, 33);
  CUX_SHARED(float, second, 33);
  first[threadIdx.x + (bug ? 2 : 1)] = 1;  // bug: past_static_shared
  second[threadIdx.x + 1] = 2;
  out[threadIdx.x] = second[threadIdx.x + 1];
}
void past_global(float* out, bool bug) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < 100 || (bug && i == 100)) out[i] = 1;  // bug: past_global
}
void before_global(float* out, bool bug) {
  out[threadIdx.x] = out[static_cast<int>(threadIdx.x) - (bug ? 1 : 0)];  // bug: before_global
}
void local_of_another_thread(float* out, bool bug) {
  CUX_SHARED(float*, pointers, 32);
  float own = 1;
  pointers[threadIdx.x] = &own;
  __syncthreads();
  *pointers[threadIdx.x ^ (bug ? 1 : 0)] = 2;  // bug: local_of_another_thread
  __syncthreads();
  out[threadIdx.x] = own;
}
inline float of_the_host = 0;
void host_memory(float* out, bool bug) {
  (bug ? of_the_host : out[threadIdx.x]) = 1;  // bug: host_memory
}
void misaligned_plain(float* out, bool bug) {
  auto* const quads = reinterpret_cast<float4*>(out + (bug ? 2 : 4));
  quads[threadIdx.x] = float4{1, 2, 3, 4};  // bug: misaligned_plain
}
void misaligned_words(float* out, bool bug) {
  float* const to = out + 4 * threadIdx.x + (bug ? 1 : 2);
  cux::store_global(to, Words<2>{{1, 2}});  // bug: misaligned_words
}
void misaligned_copy(float* data, bool bug) {
  CUX_DYN_SMEM(bytes);
  unsigned char* const to = bytes + 16 * threadIdx.x + (bug ? 8 : 0);
  cux::cp_async16(to, data + 4 * threadIdx.x, true);  // bug: misaligned_copy
  cux::cp_async_commit();
  cux::cp_async_wait<0>();
}
void wide_offset(uint8_t* data, int64_t row_stride, int rows,
                 bool bug) {  // rows·stride is beyond 2³¹
  const int row = static_cast<int>(blockIdx.x);
  const int64_t offset = bug ? static_cast<int64_t>(static_cast<int>(
                                   static_cast<unsigned>(row) * static_cast<unsigned>(row_stride)))
                             : row * row_stride;
  if (row < rows) data[offset] = 8;  // bug: offset_of_32_bits
}
Error offset_of_32_bits(bool bug) {
  constexpr int64_t kStride = int64_t{3} << 28;
  constexpr int kRows = 4;
  void* const data = cux::host::allocate_sparse(kStride * kRows);
  const Error error = cux::launch(wide_offset, dim3(kRows), dim3(1), 0, nullptr,
                                  static_cast<uint8_t*>(data), kStride, kRows, bug);
  cux::host::release(data);
  return error;
}

// ---- launches

void nothing(float*, bool) {}
Error launch_with(bool bug, dim3 wrong, dim3 grid, size_t shared_bytes) {
  return cux::launch(nothing, bug ? wrong : grid, dim3(32), shared_bytes, nullptr,
                     static_cast<float*>(nullptr), bug);
}
void large_static(float* out, bool) {
  CUX_SHARED(float, values, 4096);
  values[threadIdx.x] = 1;
  out[threadIdx.x] = values[threadIdx.x];
}
Error on_card(int architecture, bool bug, size_t wrong_bytes, size_t bytes) {
  cux::host::choose_card(architecture);
  const Error error = run(large_static, bug, 1, 32, 1024, bug ? wrong_bytes : bytes);
  cux::host::choose_card(80);
  return error;
}

// ---- bits that depend on the order of blocks

void sum_of_blocks(float* data, bool bug) {
  const float own = 1.f / static_cast<float>(1 + blockIdx.x);
  if (bug)
    atomicAdd(data, own);  // bug: sum_of_blocks
  else
    data[1 + blockIdx.x] = own;
}

}  // namespace planted
