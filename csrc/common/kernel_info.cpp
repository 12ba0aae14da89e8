#include "common/kernel_info.h"

namespace fulgurite {
namespace {

std::vector<KernelInfo*>& kernel_registry() {
  static std::vector<KernelInfo*> kernels;
  return kernels;
}

}  // namespace

KernelInfo::KernelInfo(const char* device, const char* name) : device_(device), name_(name) {
  kernel_registry().push_back(this);
}

KernelReport KernelInfo::report() const {
  return {name_,
          device_,
          variants(),
          active(),
          ran(),
          calls_.load(std::memory_order_relaxed),
          tasks_.load(std::memory_order_relaxed),
          threads_.load(std::memory_order_relaxed),
          __atomic_load_n(&tiles_.rows, __ATOMIC_RELAXED),
          __atomic_load_n(&tiles_.columns, __ATOMIC_RELAXED),
          __atomic_load_n(&tiles_.seen, __ATOMIC_RELAXED),
          __atomic_load_n(&tiles_.skipped, __ATOMIC_RELAXED)};
}

std::vector<KernelReport> kernel_table() {
  std::vector<KernelReport> table;
  for (const KernelInfo* kernel : kernel_registry()) table.push_back(kernel->report());
  return table;
}

}  // namespace fulgurite
