// The machine's own peak, measured.
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <stdexcept>

#include "cpu/isa.h"
#include "cpu/kernels/peak.h"

namespace fulgurite {

FULGURITE_KERNEL(cpu_peak, product_peak, PeakFn);

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

Dtype parse_dtype(const std::string& name) {
  if (name == "float64") return Dtype::kFloat64;
  if (name == "float32") return Dtype::kFloat32;
  if (name == "bfloat16") return Dtype::kBFloat16;
  throw std::invalid_argument("fulgurite: expected float64, float32 or bfloat16, got " + name);
}

/// Operations a second of all threads together. Each counts its own for kSeconds, which begin when the last one is awake:
/// how long waking took is in no count, and none has the machine to itself. 0 where one had not come after kPatience.
double rate(PeakFn* run, const PeakParams& p) {
  constexpr double kSeconds = 0.02, kPatience = 1.0;
  const int64_t threads = at::get_num_threads();
  std::atomic<int64_t> awake{0};
  std::atomic<bool> together{true};
  std::atomic<double> total{0};
  const auto start = Clock::now();
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    awake.fetch_add(end - begin);
    while (awake.load() < threads && together.load()) {
      run(p);  // works meanwhile: a core that idles slows down
      if (seconds_since(start) > kPatience) together.store(false);
    }
    double operations = 0, seconds = 0;
    const auto counted_from = Clock::now();
    while (seconds < kSeconds) {
      operations += run(p);
      seconds = seconds_since(counted_from);
    }
    total.fetch_add(operations / seconds);
  });
  return together ? total.load() : 0;
}

}  // namespace

double measure_peak(const std::string& dtype) {
  // Tens of microseconds: asking the time costs nothing beside it.
  constexpr int64_t kRounds = 4096;
  const PeakParams p{parse_dtype(dtype), kRounds};
  PeakFn* const run = product_peak_kernel.get(p.dtype);
  double best = 0;
  for (int repeat = 0; repeat < 5; ++repeat) best = std::max(best, rate(run, p));
  if (best == 0) throw std::runtime_error("fulgurite: torch's threads did not run together");
  return best;
}

}  // namespace fulgurite
