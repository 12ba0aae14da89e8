#include "common/isa.h"

#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fulgurite {
namespace {

constexpr const char* kNames[kNumIsas] = {"baseline",    "avx2", "avx512",
                                          "avx512_bf16", "amx",  "neon"};

#if defined(__x86_64__)
// The operating system hands out the tile registers only on request (Linux's arch_prctl ARCH_REQ_XCOMP_PERM, component 18).
bool amx_usable() {
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if ((edx & (kAmxBf16 | kAmxTile)) != (kAmxBf16 | kAmxTile)) return false;
  constexpr long kReqXcompPerm = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kReqXcompPerm, kTileData) == 0;
}

bool machine_has(Isa isa) {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  switch (isa) {
    case Isa::baseline: return true;
    case Isa::avx2: return avx2;
    case Isa::avx512: return avx512;
    case Isa::avx512_bf16: return bf16;
    case Isa::amx: return bf16 && amx_usable();
    case Isa::neon: return false;
  }
  return false;
}
#else
bool machine_has(Isa isa) { return isa == Isa::baseline || isa == Isa::neon; }
#endif

std::vector<Isa> machine_isas() {
  std::vector<Isa> isas;
  for (int i = 0; i < kNumIsas; ++i)
    if (machine_has(static_cast<Isa>(i))) isas.push_back(static_cast<Isa>(i));
  return isas;
}

Isa parse_isa(const std::string& name) {
  std::string known;
  for (Isa isa : machine_isas()) {
    if (name == isa_name(isa)) return isa;
    known += known.empty() ? isa_name(isa) : std::string(", ") + isa_name(isa);
  }
  throw std::invalid_argument("fulgurite: expected an instruction set of this machine (" + known +
                              "), got '" + name + "'");
}

std::atomic<int>& selected() {
  static std::atomic<int> isa = [] {
    const char* wanted = std::getenv("FULGURITE_ISA");
    return static_cast<int>(wanted && *wanted ? parse_isa(wanted) : machine_isas().back());
  }();
  return isa;
}

// Waking a thread costs a few microseconds: about this many multiplications or bytes.
std::atomic<int64_t> inline_cost_limit{int64_t{1} << 16};

std::vector<KernelInfo*>& registry() {
  static std::vector<KernelInfo*> kernels;
  return kernels;
}

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

Isa current_isa() { return static_cast<Isa>(selected().load(std::memory_order_relaxed)); }

KernelInfo::KernelInfo(const char* name) : name_(name) { registry().push_back(this); }

Isa KernelInfo::active(Dtype dtype) const {
  const auto serves = [&](Isa isa) {
    const bool products_of_bfloat16 = isa == Isa::avx512_bf16 || isa == Isa::amx;
    return has(isa) && (!products_of_bfloat16 || dtype == Dtype::kBFloat16);
  };
  for (int i = static_cast<int>(current_isa()); i > 0; --i)
    if (serves(static_cast<Isa>(i))) return static_cast<Isa>(i);
  return Isa::baseline;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (Isa isa : machine_isas()) names.emplace_back(isa_name(isa));
  return names;
}

std::string get_isa() { return isa_name(current_isa()); }

void set_isa(const std::string& name) { selected().store(static_cast<int>(parse_isa(name))); }

int64_t inline_cost() { return inline_cost_limit.load(std::memory_order_relaxed); }

void set_inline_cost(int64_t cost) { inline_cost_limit.store(cost, std::memory_order_relaxed); }

std::vector<KernelReport> kernel_table() {
  std::vector<KernelReport> table;
  for (const KernelInfo* kernel : registry()) {
    const TileCount& tiles = kernel->tiles();
    KernelReport report{kernel->name(),
                        {},
                        isa_name(kernel->active(Dtype::kBFloat16)),
                        isa_name(kernel->ran()),
                        kernel->calls(),
                        kernel->tasks(),
                        kernel->threads(),
                        __atomic_load_n(&tiles.rows, __ATOMIC_RELAXED),
                        __atomic_load_n(&tiles.columns, __ATOMIC_RELAXED),
                        __atomic_load_n(&tiles.seen, __ATOMIC_RELAXED),
                        __atomic_load_n(&tiles.skipped, __ATOMIC_RELAXED)};
    for (int i = 0; i < kNumIsas; ++i)
      if (kernel->has(static_cast<Isa>(i)))
        report.variants.emplace_back(isa_name(static_cast<Isa>(i)));
    table.push_back(std::move(report));
  }
  return table;
}

}  // namespace fulgurite
