// What kernels of CUDA are written in besides CUDA's own language: the instructions of an sm_80 that have no name in it. This
// is the only file with PTX. Each function has a second body in cuda/host, for kernels that g++ compiles and the executor runs
// on the host; a kernel's source is the same for both.
//
//   CUX_DYN_SMEM(bytes)             unsigned char* bytes: the launch's dynamic shared memory
//   CUX_SHARED(float, sums, 4)      float sums[4] in static shared memory
//   CUX_UNROLL, CUX_NO_UNROLL       unrolls the loop that follows, or keeps it one
//   load_global, store_global       4, 8 or 16 bytes in one access
//   cp_async16, cp_async_commit, cp_async_wait<n>   16 bytes from global to shared memory beside other work
//   ldmatrix_x4, ldmatrix_x4_trans, mma_m16n8k16    tensor cores: bfloat16 or float16 products, float32 sums
//   barrier_sync, barrier_arrive    barriers 1 to 15 of some warps of a block
//   pack2, unpack2                  two numbers of 16 bits in a word
//   ex2, lg2                        2^x and log2 x, approximately
#pragma once

#include <cstdint>

#include "simd/types.h"

namespace cux {

using fulgurite::BFloat16;
using fulgurite::Half;

/// What one thread moves in an access; it may stand in for other types.
template <int n>
struct __attribute__((aligned(4 * n), may_alias)) Words {
  uint32_t word[n];
};

}  // namespace cux

#if !defined(__CUDACC__)
#include "cuda/host/cux_host.h"
#else

#define CUX_UNROLL _Pragma("unroll")
#define CUX_NO_UNROLL _Pragma("unroll 1")
#define CUX_DYN_SMEM(name)                                     \
  extern __shared__ __align__(128) unsigned char cux_shared[]; \
  unsigned char* const name = cux_shared
#define CUX_SHARED(T, name, n) __shared__ T name[n]

namespace cux {

__device__ __forceinline__ Words<1> load_global4(const void* from) {
  Words<1> w;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(w.word[0]) : "l"(from) : "memory");
  return w;
}
__device__ __forceinline__ Words<2> load_global8(const void* from) {
  Words<2> w;
  asm volatile("ld.global.v2.u32 {%0,%1}, [%2];"
               : "=r"(w.word[0]), "=r"(w.word[1])
               : "l"(from)
               : "memory");
  return w;
}
__device__ __forceinline__ Words<4> load_global16(const void* from) {
  Words<4> w;
  asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(w.word[0]), "=r"(w.word[1]), "=r"(w.word[2]), "=r"(w.word[3])
               : "l"(from)
               : "memory");
  return w;
}
__device__ __forceinline__ void store_global(void* to, Words<1> w) {
  asm volatile("st.global.u32 [%0], %1;" ::"l"(to), "r"(w.word[0]) : "memory");
}
__device__ __forceinline__ void store_global(void* to, Words<2> w) {
  asm volatile("st.global.v2.u32 [%0], {%1,%2};" ::"l"(to), "r"(w.word[0]), "r"(w.word[1])
               : "memory");
}
__device__ __forceinline__ void store_global(void* to, Words<4> w) {
  asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(to), "r"(w.word[0]), "r"(w.word[1]),
               "r"(w.word[2]), "r"(w.word[3])
               : "memory");
}

__device__ __forceinline__ uint32_t shared_address(const void* in_shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(in_shared));
}

/// Without `wanted` the destination becomes zeros and nothing is read.
__device__ __forceinline__ void cp_async16(void* to_shared, const void* from_global, bool wanted) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to_shared)),
               "l"(from_global), "r"(wanted ? 16 : 0)
               : "memory");
}
/// What the thread has copied since the last commit is a group.
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Until all but the thread's last n groups are there; other threads' groups are theirs to wait for.
template <int n>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

/// Four 8 × 8 matrices of 16-bit elements; lane l gives the address of row l mod 8 of matrix l/8 and gets elements 2(l mod 4)
/// and the next of row l/4 of each.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
/// The same of the transposed matrices.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

/// d += a·b by a warp: d is 16 × 8, a 16 × 16 in rows, b 16 × 8 in columns; T is BFloat16 or Half.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1);
template <>
__device__ __forceinline__ void mma_m16n8k16<BFloat16>(float (&d)[4], const uint32_t (&a)[4],
                                                       uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void mma_m16n8k16<Half>(float (&d)[4], const uint32_t (&a)[4],
                                                   uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Threads, a multiple of 32, that meet at barrier `id`: those that sync wait, those that arrive go on.
__device__ __forceinline__ void barrier_sync(int id, int threads) {
  asm volatile("barrier.sync.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void barrier_arrive(int id, int threads) {
  asm volatile("barrier.arrive.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Rounded to even; `low` is the element at the lower address.
template <class T>
__device__ __forceinline__ uint32_t pack2(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack2<BFloat16>(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
template <>
__device__ __forceinline__ uint32_t pack2<Half>(float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
/// Exact.
template <class T>
__device__ __forceinline__ void unpack2(uint32_t word, float& low, float& high);
template <>
__device__ __forceinline__ void unpack2<BFloat16>(uint32_t word, float& low, float& high) {
  low = __uint_as_float(word << 16);
  high = __uint_as_float(word & 0xffff0000u);
}
template <>
__device__ __forceinline__ void unpack2<Half>(uint32_t word, float& low, float& high) {
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
      : "=f"(low), "=f"(high)
      : "r"(word));
}
__device__ __forceinline__ float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float lg2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace cux

#endif
