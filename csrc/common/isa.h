// Instruction sets and the tables of kernels compiled for them.
//
// A kernel file is compiled once per set that it lists (cmake/cpu_variants.cmake), each time into its own namespace
// fulgurite::<set>. FULGURITE_KERNEL makes the table of those functions; Kernel::get picks the function of the set in
// use, or of the next lower one that the kernel has. What avx512_bf16 and amx add is products of bfloat16: calls of other
// dtypes pass them over.
#pragma once

#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "fulgurite/config.h"
#include "kernel_variants.h"
#include "simd/types.h"

namespace fulgurite {

enum class Isa : int { baseline, avx2, avx512, avx512_bf16, amx, neon };
inline constexpr int kNumIsas = 6;

const char* isa_name(Isa isa);
/// The set in use: the best of the machine, or FULGURITE_ISA, read at the first call.
Isa current_isa();

/// Tiles of a kernel that cuts its problem into them, and how many it could skip. Accessed atomically.
struct TileCount {
  int64_t rows, columns;  // of a tile, in the last call
  int64_t seen, skipped;  // since the library was loaded
};

/// One entry of the table of all kernels, as show_config and explain read it.
class KernelInfo {
 public:
  explicit KernelInfo(const char* name);
  KernelInfo(const KernelInfo&) = delete;
  KernelInfo& operator=(const KernelInfo&) = delete;
  virtual ~KernelInfo() = default;

  virtual bool has(Isa isa) const = 0;
  /// The set whose function a call on tensors of this dtype would run now.
  Isa active(Dtype dtype) const;
  void count(int64_t tasks, int64_t threads) {
    calls_.fetch_add(1, std::memory_order_relaxed);
    tasks_.fetch_add(tasks, std::memory_order_relaxed);
    threads_.store(threads, std::memory_order_relaxed);
  }
  TileCount* tiles() { return &tiles_; }
  const TileCount& tiles() const { return tiles_; }
  const char* name() const { return name_; }
  int64_t calls() const { return calls_.load(std::memory_order_relaxed); }
  int64_t tasks() const { return tasks_.load(std::memory_order_relaxed); }
  int64_t threads() const { return threads_.load(std::memory_order_relaxed); }
  /// The set whose function was taken last.
  Isa ran() const { return ran_.load(std::memory_order_relaxed); }

 protected:
  mutable std::atomic<Isa> ran_{Isa::baseline};

 private:
  const char* name_;
  std::atomic<int64_t> calls_{0}, tasks_{0}, threads_{0};
  TileCount tiles_{};
};

template <class Fn>
class Kernel final : public KernelInfo {
 public:
  Kernel(const char* name, std::initializer_list<std::pair<Isa, Fn*>> variants) : KernelInfo(name) {
    for (const auto& [isa, fn] : variants) table_[static_cast<int>(isa)] = fn;
  }
  bool has(Isa isa) const override { return table_[static_cast<int>(isa)] != nullptr; }
  /// The function for tensors of this dtype; a kernel that no dtype changes need not say it.
  Fn* get(Dtype dtype = Dtype::kFloat32) const {
    const Isa isa = active(dtype);
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
