#include "cuda/host/machine.h"
#include "cuda/host/report.h"

namespace cux::host {

bool SharedMemory::contains(uintptr_t address) const {
  const auto begin = reinterpret_cast<uintptr_t>(base);
  return address >= begin && address < begin + kMost;
}

bool SharedMemory::is_within(size_t offset, size_t bytes) const {
  if (offset >= kGap && offset + bytes <= kGap + dynamic_bytes) return true;
  for (const StaticArray& array : arrays)
    if (offset >= array.offset && offset + bytes <= array.offset + array.bytes) return true;
  return false;
}

std::string SharedMemory::name_of(size_t offset) const {
  const auto place = [&](const char* name, size_t begin) {
    const auto at = static_cast<ptrdiff_t>(offset) - static_cast<ptrdiff_t>(begin);
    return name + std::string(at < 0 ? "" : "+") + std::to_string(at);
  };
  for (const StaticArray& array : arrays)
    if (offset + kGap / 2 >= array.offset && offset < array.offset + array.bytes + kGap / 2)
      return place(array.name, array.offset);
  return place("shared", kGap);
}

unsigned char* dynamic_shared() { return machine().shared.base + SharedMemory::kGap; }

void* static_shared(const void* key, const char* name, size_t bytes, size_t alignment) {
  const AtWork at_work;
  SharedMemory& shared = machine().shared;
  for (const StaticArray& array : shared.arrays)
    if (array.key == key) return shared.base + array.offset;
  const Card& c = card();
  const size_t all = shared.static_bytes + bytes;
  if (all > static_cast<size_t>(c.shared_without_asking))
    fail("shared-too-large", "static arrays of %zu bytes, and a block has %d of them", all,
         c.shared_without_asking);
  if (all + shared.dynamic_bytes > static_cast<size_t>(c.shared_bytes))
    fail("shared-too-large",
         "%zu bytes of static and %zu of dynamic shared memory, and a block of "
         "sm_%d has %d",
         all, shared.dynamic_bytes, c.architecture, c.shared_bytes);
  const size_t step = alignment < 16 ? 16 : alignment;
  const size_t offset = (shared.end + step - 1) / step * step;
  shared.static_bytes = all;
  shared.end = offset + bytes + SharedMemory::kGap;
  shared.arrays.push_back({key, name, offset, bytes});
  return shared.base + offset;
}

}  // namespace cux::host
