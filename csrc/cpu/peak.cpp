// The machine's own peak, measured.
#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "cpu/kernels/peak.h"
#include "cpu/isa.h"

namespace fulgurite {

FULGURITE_KERNEL(cpu_peak, product_peak, PeakFn);

namespace {

Dtype parse_dtype(const std::string& name) {
  if (name == "float64") return Dtype::kFloat64;
  if (name == "float32") return Dtype::kFloat32;
  if (name == "bfloat16") return Dtype::kBFloat16;
  throw std::invalid_argument("fulgurite: expected float64, float32 or bfloat16, got " + name);
}

/// Operations a second of all threads together.
double rate(PeakFn* run, const PeakParams& p) {
  using Clock = std::chrono::steady_clock;
  const int64_t threads = at::get_num_threads();
  std::atomic<double> operations{0};
  const auto start = Clock::now();
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) operations.fetch_add(run(p));
  });
  return operations / std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

double measure_peak(const std::string& dtype) {
  constexpr double kSeconds = 0.02;
  PeakParams p{parse_dtype(dtype), 1024};
  PeakFn* const run = product_peak_kernel.get(p.dtype);
  const double operations = run(p) * static_cast<double>(at::get_num_threads());
  p.rounds *= 1 + static_cast<int64_t>(kSeconds * rate(run, p) / operations);
  double best = 0;
  for (int repeat = 0; repeat < 5; ++repeat) best = std::max(best, rate(run, p));
  return best;
}

}  // namespace fulgurite
