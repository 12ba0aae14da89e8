// The product of product.cuh beside float64, at sizes that cross every edge of its tiles, in every schedule.
#include "product.cuh"

#include <array>
#include <cmath>
#include <cstdio>
#include <random>

#include "cuda/host/counts.h"
#include "cuda/host/memory.h"

using cux::BFloat16;
using cux::Half;
using cux::host::Array;

namespace {

float number(BFloat16 x) { return cux::host::float_of_bfloat16(x.bits); }
float number(Half x) { return cux::host::float_of_float16(x.bits); }
void assign(BFloat16& x, float v) { x.bits = cux::host::bfloat16_of(v); }
void assign(Half& x, float v) { x.bits = cux::host::float16_of(v); }

template <class T>
std::vector<T> normal(int64_t n, std::mt19937& random) {
  std::normal_distribution<float> distribution;
  std::vector<T> values(static_cast<size_t>(n));
  for (T& x : values) assign(x, distribution(random));
  return values;
}

template <class T>
bool is_right(int64_t M, int64_t N, int64_t K) {
  std::mt19937 random(static_cast<unsigned>(M + 1000 * N));
  const Array<T> a(normal<T>(M * K, random)), b(normal<T>(N * K, random));
  const Array<float> c(static_cast<size_t>(M * N));
  if (const cux::Error error =
          product::launch<T>({a.data(), b.data(), c.data(), M, N, K}, nullptr)) {
    std::printf("FAILED %s\n", error);
    return false;
  }
  for (int64_t i = 0; i < M; ++i)
    for (int64_t j = 0; j < N; ++j) {
      double sum = 0, size = 0;
      for (int64_t k = 0; k < K; ++k) {
        const double x = double{number(a[static_cast<size_t>(i * K + k)])} *
                         double{number(b[static_cast<size_t>(j * K + k)])};
        sum += x;
        size += std::fabs(x);
      }
      const double error = std::fabs(double{c[static_cast<size_t>(i * N + j)]} - sum);
      if (!(error <= static_cast<double>(K) * 0x1p-24 * size)) {
        std::printf("FAILED (%ld,%ld,%ld) at (%ld,%ld): off by %g\n", M, N, K, i, j, error);
        return false;
      }
    }
  return true;
}

}  // namespace

int main() {
  auto& settings = cux::host::settings();
  settings.every_schedule = settings.check;
  bool right = true;
  for (const auto [M, N, K] :
       {std::array<int64_t, 3>{1, 1, 8}, {64, 64, 32}, {65, 63, 40}, {130, 70, 96}})
    right = right && is_right<BFloat16>(M, N, K) && is_right<Half>(M, N, K);
  const cux::host::Counts& counts =
      cux::host::counts();                 // of the last launch: 3 × 2 tiles, 3 steps
  const uint64_t mma = 6 * 3 * 4 * 2 * 8;  // tiles, steps, warps, depths of 16, of a warp
  if (right && counts.mma != mma) {
    std::printf("FAILED expected %lu mma, got %lu\n", mma, counts.mma);
    right = false;
  }
  std::printf("%s\n", right ? "all products are right" : "");
  return !right;
}
