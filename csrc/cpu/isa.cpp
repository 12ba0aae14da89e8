#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fulgurite {
namespace {

struct IsaRow {
  const char* name;
  Isa parent;
  bool products, float64;
};
#define FULGURITE_ISA_ROW(isa, parent, products, float64) \
  {#isa, Isa::parent, products != 0, float64 != 0},
constexpr IsaRow kIsas[kNumIsas] = {FULGURITE_ISA_TABLE(FULGURITE_ISA_ROW)};
#undef FULGURITE_ISA_ROW

const IsaRow& row_of(Isa isa) { return kIsas[static_cast<int>(isa)]; }

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

}  // namespace

const char* isa_name(Isa isa) { return row_of(isa).name; }

Isa current_isa() { return static_cast<Isa>(selected().load(std::memory_order_relaxed)); }

Isa CpuKernel::active_isa(Dtype dtype) const {
  const auto serves = [&](Isa isa) {
    const IsaRow& row = row_of(isa);
    return has(isa) && (!row.products || dtype == Dtype::kBFloat16) &&
           (row.float64 || dtype != Dtype::kFloat64);
  };
  Isa isa = current_isa();
  while (!serves(isa) && isa != Isa::baseline) isa = row_of(isa).parent;
  return isa;
}

std::vector<std::string> CpuKernel::variants() const {
  std::vector<std::string> names;
  for (int i = 0; i < kNumIsas; ++i)
    if (has(static_cast<Isa>(i))) names.emplace_back(isa_name(static_cast<Isa>(i)));
  return names;
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

}  // namespace fulgurite
