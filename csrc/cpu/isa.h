// Instruction sets and the tables of kernels compiled for them.
//
// A kernel file is compiled once per set (cmake/isas.cmake), each time into its own namespace fulgurite::<set>. FULGURITE_KERNEL makes
// the table of those functions; Kernel::get picks the function of the set in use, or of the nearest of its parents that the
// kernel has and that serves the call's dtype: sets that only add products of bfloat16 serve no other type, and float64 has no
// kernels for sets wider than AVX2.
#pragma once

#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "common/kernel_info.h"
#include "kernel_variants.h"
#include "simd/types.h"

namespace fulgurite {

#define FULGURITE_ISA_NAME(isa, ...) isa,
enum class Isa : int { FULGURITE_ISA_TABLE(FULGURITE_ISA_NAME) };
#undef FULGURITE_ISA_NAME

#define FULGURITE_ISA_ONE(...) +1
inline constexpr int kNumIsas = FULGURITE_ISA_TABLE(FULGURITE_ISA_ONE);
#undef FULGURITE_ISA_ONE

const char* isa_name(Isa isa);
/// The set in use: the best of the machine, or FULGURITE_ISA, read at the first call.
Isa current_isa();

/// A kernel of the CPU, whatever its functions take.
class CpuKernel : public KernelInfo {
 public:
  explicit CpuKernel(const char* name) : KernelInfo("cpu", name) {}
  virtual bool has(Isa isa) const = 0;
  /// The set whose function a call on tensors of this dtype would run now.
  Isa active_isa(Dtype dtype) const;

 protected:
  std::vector<std::string> variants() const override;
  std::string active() const override { return isa_name(active_isa(Dtype::kBFloat16)); }
  std::string ran() const override { return isa_name(ran_.load(std::memory_order_relaxed)); }
  mutable std::atomic<Isa> ran_{Isa::baseline};  // the set whose function was taken last
};

template <class Fn>
class Kernel final : public CpuKernel {
 public:
  Kernel(const char* name, std::initializer_list<std::pair<Isa, Fn*>> variants) : CpuKernel(name) {
    for (const auto& [isa, fn] : variants) table_[static_cast<int>(isa)] = fn;
  }
  bool has(Isa isa) const override { return table_[static_cast<int>(isa)] != nullptr; }
  /// The function for tensors of this dtype; float32 for what has none.
  Fn* get(Dtype dtype) const {
    const Isa isa = active_isa(dtype);
    ran_.store(isa, std::memory_order_relaxed);
    return table_[static_cast<int>(isa)];
  }

 private:
  Fn* table_[kNumIsas] = {};
};

}  // namespace fulgurite

#define FULGURITE_DECLARE_VARIANT(isa, function, Fn) \
  namespace isa {                                    \
  Fn function;                                       \
  }
#define FULGURITE_VARIANT_ENTRY(isa, function, Fn) {Isa::isa, &isa::function},
/// Inside namespace fulgurite: the table `function##_kernel` of `function`, of type Fn, from the file `file` (family_stem).
#define FULGURITE_KERNEL(file, function, Fn)                                           \
  FULGURITE_VARIANTS_##file(FULGURITE_DECLARE_VARIANT, function, Fn) static Kernel<Fn> \
      function##_kernel(#function,                                                     \
                        {FULGURITE_VARIANTS_##file(FULGURITE_VARIANT_ENTRY, function, Fn)})
