#include "bench.h"

#include <getopt.h>
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "fulgurite/config.h"

namespace fulgurite::bench {
namespace {

constexpr const char* kUsage =
    "usage: %s [--filter TEXT] [--isa SET] [--seconds S] [--smallest]\n"
    "  --filter TEXT   cases whose line has TEXT before the times: a kernel, a dtype, a shape\n"
    "  --isa SET       this instruction set alone, again for another; all of the machine "
    "otherwise\n"
    "  --seconds S     for each case (0.5)\n"
    "  --smallest      the first shape alone: that it runs\n";

[[noreturn]] void leave(const char* program, int status) {
  std::fprintf(status ? stderr : stdout, kUsage, program);
  std::exit(status);
}

/// Of the thread's own time: what others run on the machine takes none of it.
double now() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

double seconds_of(const std::function<void()>& run, int64_t repeats) {
  const double start = now();
  for (int64_t i = 0; i < repeats; ++i) run();
  return now() - start;
}

const char* name_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64: return "float64";
    case Dtype::kFloat32: return "float32";
    case Dtype::kBFloat16: return "bfloat16";
    case Dtype::kFloat16: return "float16";
  }
  return "";
}

/// What the filter looks at: a line without its times.
std::string name_of(const CpuKernel& kernel, Dtype dtype, const std::string& shape) {
  return kernel.report().name + " " + get_isa() + " " + name_of(dtype) + " " + shape;
}

/// The next of a row of numbers within ±1 that look like noise.
double next_number(uint32_t& state) {
  state = state * 1664525u + 1013904223u;
  return static_cast<double>(static_cast<int32_t>(state)) * 0x1p-31;
}

template <class T>
void fill(char* to, int64_t n) {
  uint32_t state = 1;
  for (int64_t i = 0; i < n; ++i) {
    const T x = static_cast<T>(next_number(state));
    std::memcpy(to + i * static_cast<int64_t>(sizeof(T)), &x, sizeof(T));
  }
}

uint32_t float_bits(double x) {
  const float wide = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &wide, sizeof(bits));
  return bits;
}

/// 16-bit types, cut off: no compiler has both.
struct CutBFloat16 {
  uint16_t bits;
  explicit CutBFloat16(double x) : bits(static_cast<uint16_t>(float_bits(x) >> 16)) {}
};

struct CutHalf {
  uint16_t bits;
  explicit CutHalf(double x) {
    constexpr uint32_t kSmallest = 113u << 23;  // 2^-14 of float32; what is below becomes 0
    const uint32_t wide = float_bits(x), size = wide & 0x7FFFFFFFu;
    const uint32_t cut = size < kSmallest ? 0 : (size - (112u << 23)) >> 13;
    bits = static_cast<uint16_t>((wide >> 16 & 0x8000u) | cut);
  }
};

}  // namespace

int64_t bytes_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64: return 8;
    case Dtype::kFloat32: return 4;
    default: return 2;
  }
}

Memory::Memory(int64_t bytes) : bytes_(static_cast<size_t>(bytes) + 63) {}

Memory::Memory(Dtype dtype, int64_t elements) : Memory(bytes_of(dtype) * elements) {
  char* const to = as<char>();
  switch (dtype) {
    case Dtype::kFloat64: fill<double>(to, elements); break;
    case Dtype::kFloat32: fill<float>(to, elements); break;
    case Dtype::kBFloat16: fill<CutBFloat16>(to, elements); break;
    case Dtype::kFloat16: fill<CutHalf>(to, elements); break;
  }
}

void* Memory::data() const {
  const auto address = reinterpret_cast<uintptr_t>(bytes_.data());
  return reinterpret_cast<void*>((address + 63) / 64 * 64);
}

Bench::Bench(int argc, char** argv) {
  const option options[] = {
      {"filter", required_argument, nullptr, 'f'},  {"isa", required_argument, nullptr, 'i'},
      {"seconds", required_argument, nullptr, 's'}, {"smallest", no_argument, nullptr, 'm'},
      {"help", no_argument, nullptr, 'h'},          {}};
  for (int one; (one = getopt_long(argc, argv, "", options, nullptr)) != -1;) {
    char* end = nullptr;
    switch (one) {
      case 'f': filter_ = optarg; break;
      case 'i': sets_.emplace_back(optarg); break;
      case 's':
        seconds_ = std::strtod(optarg, &end);
        if (*end || end == optarg || !(seconds_ >= 0)) leave(argv[0], 2);
        break;
      case 'm': smallest_ = true; break;
      case 'h': leave(argv[0], 0);
      default: leave(argv[0], 2);
    }
  }
  if (optind < argc) leave(argv[0], 2);
  const std::vector<std::string> machine = available_isas();
  for (const std::string& set : sets_)
    if (std::find(machine.begin(), machine.end(), set) == machine.end()) {
      std::fprintf(stderr, "%s: this machine has no %s\n", argv[0], set.c_str());
      std::exit(2);
    }
  if (sets_.empty()) sets_ = machine;
}

void Bench::for_sets(const std::function<void()>& visit) {
  for (const std::string& set : sets_) {
    set_isa(set);
    visit();
  }
}

bool Bench::wants(const CpuKernel& kernel, Dtype dtype, const std::string& shape) const {
  // Where a parent's function runs, the line is the parent's.
  return kernel.active_isa(dtype) == current_isa() &&
         name_of(kernel, dtype, shape).find(filter_) != std::string::npos;
}

bool Bench::wants(std::initializer_list<const CpuKernel*> kernels, Dtype dtype,
                  const std::string& shape) const {
  return std::any_of(kernels.begin(), kernels.end(),
                     [&](const CpuKernel* kernel) { return wants(*kernel, dtype, shape); });
}

void Bench::time(const CpuKernel& kernel, Dtype dtype, const std::string& shape, Work work,
                 const std::function<void()>& run) {
  if (!wants(kernel, dtype, shape)) return;
  ++cases_;
  constexpr double kRound = 1e-3;  // far above what the clock takes
  constexpr size_t kRounds = 3;    // at least
  run();                           // what is touched for the first time
  const double once = seconds_of(run, 1);
  const auto repeats = static_cast<int64_t>(std::max(1.0, kRound / std::max(once, 1e-9)));
  std::vector<double> rounds;
  for (const double start = now(); rounds.size() < kRounds || now() - start < seconds_;)
    rounds.push_back(seconds_of(run, repeats) / static_cast<double>(repeats));
  std::sort(rounds.begin(), rounds.end());
  const double best = rounds.front(), median = rounds[rounds.size() / 2];
  std::printf("%-24s %-12s %-9s %-36s %10.1f %10.1f µs %9.1f %s\n", kernel.report().name.c_str(),
              get_isa().c_str(), name_of(dtype), shape.c_str(), best * 1e6, median * 1e6,
              work.amount / best / 1e9, work.unit);
  std::fflush(stdout);
}

int Bench::finish() const {
  if (cases_ == 0) std::fprintf(stderr, "no case has '%s'\n", filter_.c_str());
  return cases_ == 0;
}

}  // namespace fulgurite::bench
