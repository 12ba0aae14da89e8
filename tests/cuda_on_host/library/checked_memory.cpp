// Memory of tensors that the checker knows: buffers of exact size, far from each other, in place of torch's own allocator from the
// moment that the library is loaded.
#include <c10/core/CPUAllocator.h>

#include <limits>
#include <mutex>

#include "cuda/host/memory.h"
#include "memory_mutex.h"

namespace fulgurite {
namespace {

class CheckedMemory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &release, c10::Device(c10::kCPU)};
    const std::lock_guard lock(memory_mutex());
    void* const data = cux::host::allocate(bytes);
    cux::host::written_by_host(data, bytes);  // by torch, for all that can be known
    return {data, data, &release, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  static void release(void* data) {
    if (!data) return;
    const std::lock_guard lock(memory_mutex());
    cux::host::release(data);
  }
};

const bool in_place = [] {
  static CheckedMemory memory;
  c10::SetCPUAllocator(&memory, std::numeric_limits<uint8_t>::max());
  return true;
}();

}  // namespace
}  // namespace fulgurite
