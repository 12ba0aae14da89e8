// Counts of kernels whose traffic is known: sectors of global memory, wavefronts of shared memory, products beside copies.
#include "cuda/host/counts.h"

#include <cstdio>

#include "cuda/host/memory.h"
#include "product.cuh"

using cux::host::Array;
using cux::host::counts;
using cux::host::LineCounts;

namespace {

/// A warp reads every `stride`-th number of global memory and writes every `stride`-th of shared memory.
void strided(const float* from, float* to, int stride) {
  CUX_SHARED(float, values, 1024);
  const int at = static_cast<int>(threadIdx.x) * stride;
  values[at] = from[at];
  __syncthreads();
  to[threadIdx.x] = values[at];
}

/// 16 bytes a lane, side by side.
void wide(const float* from, float* to) {
  const unsigned at = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
  cux::store_global(to + at, cux::load_global16(from + at));
}

int failures = 0;

void expect(const char* what, uint64_t got, uint64_t expected) {
  if (got == expected) return;
  std::printf("FAILED %s: expected %lu, got %lu\n", what, expected, got);
  ++failures;
}

/// The sum over the lines of one kind.
LineCounts all(bool shared, bool write) {
  LineCounts sum;
  for (const auto& [line, of] : counts().lines) {
    if (line.shared != shared || line.write != write) continue;
    sum.bytes_a_lane = of.bytes_a_lane;
    sum.requests += of.requests;
    sum.bytes += of.bytes;
    sum.moves += of.moves;
    sum.ideal_moves += of.ideal_moves;
  }
  return sum;
}

void check_strides() {
  const Array<float> from(std::vector<float>(1024, 1.f)), to(1024);
  for (const int stride : {1, 2, 8, 32}) {
    cux::launch(strided, dim3(1), dim3(32), 0, nullptr, static_cast<const float*>(from.data()),
                to.data(), stride);
    const LineCounts read = all(false, false), write = all(true, true);
    expect("bytes read", read.bytes, 128);
    expect("sectors of 32 bytes", read.moves, static_cast<uint64_t>(stride < 8 ? 4 * stride : 32));
    expect("fewest sectors", read.ideal_moves, 4);
    expect("wavefronts of a stride over 32 banks", write.moves, static_cast<uint64_t>(stride));
    expect("fewest wavefronts", write.ideal_moves, 1);
  }
  cux::launch(wide, dim3(2), dim3(32), 0, nullptr, static_cast<const float*>(from.data()),
              to.data());
  expect("bytes a lane", all(false, false).bytes_a_lane, 16);
  expect("requests", all(false, true).requests, 2);
  expect("sectors of both blocks", all(false, true).moves, 32);
}

void check_product() {
  constexpr int64_t M = 128, N = 64, K = 96;  // 2 tiles, 3 steps
  const Array<cux::BFloat16> a(std::vector<cux::BFloat16>(M * K)),
      b(std::vector<cux::BFloat16>(N * K));
  const Array<float> c(M * N);
  product::launch<cux::BFloat16>({a.data(), b.data(), c.data(), M, N, K}, nullptr);
  constexpr uint64_t kSteps = 2 * 3 * 4 * 2;  // tiles, steps, warps, depths of 16
  expect("mma", counts().mma, kSteps * 8);
  expect("mma beside copies", counts().mma_while_copying,
         kSteps * 8 / 3 * 2);  // not in the last step
  expect("ldmatrix", counts().ldmatrix, kSteps * 4);
  expect("barriers", counts().barriers, 2 * 3 * 2);
  const LineCounts shared = all(true, false);
  expect("wavefronts of ldmatrix: no bank conflicts", shared.moves, shared.ideal_moves);
  expect("wavefronts of ldmatrix", shared.moves, kSteps * 4 * 4);
  const LineCounts copied = all(true, true);
  expect("wavefronts of copies: no bank conflicts", copied.moves, copied.ideal_moves);
  const LineCounts read = all(false, false);
  expect("bytes of A once, of B for each tile", read.bytes, 2 * (M * K + 2 * N * K));
  expect("sectors", read.moves, read.ideal_moves);
}

}  // namespace

int main() {
  cux::host::settings().counts_file = "/dev/null";
  check_strides();
  check_product();
  std::printf("%d counts are wrong\n", failures);
  return failures != 0;
}
