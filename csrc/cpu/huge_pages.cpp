#include "cpu/huge_pages.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fulgurite {

at::Tensor on_huge_pages(at::Tensor fresh) {
#if defined(__linux__)
  constexpr size_t kPage = 4096, kWorthwhile = 4 << 20;  // the ends of a block stay on small pages
  if (fresh.nbytes() < kWorthwhile) return fresh;
  auto* const bytes = static_cast<char*>(fresh.mutable_data_ptr());
  const size_t before = -reinterpret_cast<uintptr_t>(bytes) % kPage;
  madvise(bytes + before, (fresh.nbytes() - before) / kPage * kPage, MADV_HUGEPAGE);
#endif
  return fresh;
}

}  // namespace fulgurite
