// cp.async: carried out at the wait for it, as late as a card may, or at once, as early as it may.
#include <algorithm>
#include <cstring>

#include "cuda/host/machine.h"
#include "cuda/host/report.h"

namespace cux::host {
namespace {

void carry_out(const Copy& copy) {
  if (copy.from)
    std::memcpy(copy.to, copy.from, kCopyBytes);
  else
    std::memset(copy.to, 0, kCopyBytes);
}

}  // namespace

void copy_async(void* to, const void* from, bool wanted, Location at) {
  const AtWork at_work;
  Machine& m = machine();
  Fiber& fiber = *m.running;
  const Site site = site_of(at);
  const auto place = reinterpret_cast<uintptr_t>(to);
  if ((place | (wanted ? reinterpret_cast<uintptr_t>(from) : 0)) % kCopyBytes)
    fail("misaligned", "cp.async of 16 bytes at %s to %p from %p", to_string(site).c_str(), to,
         from);
  if (!m.shared.contains(place) ||
      !m.shared.is_within(place - reinterpret_cast<uintptr_t>(m.shared.base), kCopyBytes))
    fail("outside-shared", "cp.async at %s to byte %td of dynamic shared memory of %zu",
         to_string(site).c_str(), static_cast<unsigned char*>(to) - dynamic_shared(),
         m.shared.dynamic_bytes);
  ++counts().copies;
  if (settings().check) {
    if (wanted) check_access(fiber, from, kCopyBytes, Touch::kRead, site);
    begin_copy(fiber, to, site);
  }
  const Copy copy{static_cast<unsigned char*>(to),
                  wanted ? static_cast<const unsigned char*>(from) : nullptr, site};
  if (m.schedule.copies_early)
    carry_out(copy);
  else
    std::memset(to, 0xff, kCopyBytes);  // nobody may see what was there before
  fiber.uncommitted.push_back(copy);
}

void commit_copies() {
  const AtWork at_work;
  Fiber& fiber = *machine().running;
  fiber.groups.push_back(std::move(fiber.uncommitted));
  fiber.uncommitted.clear();
}

void wait_for_copies(int left) {
  const AtWork at_work;
  Machine& m = machine();
  Fiber& fiber = *m.running;
  const auto groups = static_cast<ptrdiff_t>(fiber.groups.size());
  const ptrdiff_t finished = std::max<ptrdiff_t>(0, groups - left);
  for (ptrdiff_t g = 0; g < finished; ++g)
    for (const Copy& copy : fiber.groups[static_cast<size_t>(g)]) {
      if (settings().check) end_copy(fiber, copy.to, copy.site);
      if (!m.schedule.copies_early) carry_out(copy);
    }
  fiber.groups.erase(fiber.groups.begin(), fiber.groups.begin() + finished);
}

}  // namespace cux::host
