#include "cpu/huge_pages.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fulgurite {

at::Tensor on_huge_pages(at::Tensor fresh) {
#if defined(__linux__)
  constexpr size_t kPage = 4096, kWorthwhile = 4 << 20;  // the ends of a block stay on small pages
  if (fresh.nbytes() < kWorthwhile) return fresh;
  const auto address = reinterpret_cast<uintptr_t>(fresh.mutable_data_ptr());
  const uintptr_t begin = (address + kPage - 1) / kPage * kPage,
                  end = (address + fresh.nbytes()) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return fresh;
}

}  // namespace fulgurite
