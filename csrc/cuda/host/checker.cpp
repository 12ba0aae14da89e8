// The checker: every access of a kernel, by where it goes.
#include <cinttypes>

#include "cuda/host/machine.h"
#include "cuda/host/memory.h"
#include "cuda/host/report.h"

namespace cux::host {
namespace {

const char* verb(Touch touch) {
  switch (touch) {
    case Touch::kRead: return "read";
    case Touch::kWrite: return "write";
    case Touch::kAtomic: return "atomic";
  }
  __builtin_unreachable();
}

/// Whether `before` is sure to have happened when `fiber` does something now.
bool is_ordered(const Machine& m, const Access& before, const Fiber& fiber, bool global) {
  if (before.block != m.block) return !global || before.block < m.first_block;
  const ThreadContext& now = fiber.thread;
  if (before.thread == now.linear) return true;
  const int warp = before.thread / kWarp;
  if (m.warps[now.warp].shown[warp] > before.barriers) return true;
  return warp == now.warp && fiber.shown[before.thread % kWarp] > before.syncs;
}

/// An access to bytes that have cells: shared or global memory.
class Bytes {
 public:
  Bytes(Fiber& fiber, Buffer* buffer, size_t offset, Touch touch, Site site)
      : m_(machine()),
        fiber_(fiber),
        buffer_(buffer),
        offset_(offset),
        touch_(touch),
        site_(site),
        own_{site,
             m_.block,
             m_.warps[fiber.thread.warp].barriers,
             fiber.syncs,
             static_cast<uint16_t>(fiber.thread.linear),
             touch == Touch::kAtomic} {}

  /// One report is enough for an access.
  void check_and_note(size_t bytes) {
    bool told = false;
    for (; bytes-- > 0; ++offset_) {
      Cell& cell = buffer_ ? *buffer_->cell(offset_) : *m_.shared.cell(offset_);
      told = told || tells_pending(cell) || tells_unwritten(cell) || tells_race(cell);
      note(cell);
    }
  }

 private:
  bool reads() const { return touch_ != Touch::kWrite; }
  bool writes() const { return touch_ != Touch::kRead; }
  std::string place() const {
    return buffer_ ? "global+" + std::to_string(offset_) : m_.shared.name_of(offset_);
  }

  bool tells_pending(const Cell& cell) const {
    if (!cell.copy_pending) return false;
    report("copy-in-flight",
           "%s at %s of %s, to where the cp.async at %s, of thread %d, has not been waited for",
           verb(touch_), to_string(site_).c_str(), place().c_str(),
           to_string(cell.write.site).c_str(), cell.write.thread);
    return true;
  }

  bool tells_unwritten(const Cell& cell) const {
    if (!reads()) return false;
    if (buffer_ ? cell.write.block != 0 || buffer_->is_from_host(offset_)
                : cell.write.block == m_.block)
      return false;
    report(buffer_ ? "unwritten-global" : "unwritten-shared", "%s at %s of %s, which %s",
           verb(touch_), to_string(site_).c_str(), place().c_str(),
           buffer_ ? "nothing has written" : "this block has not written");
    return true;
  }

  bool tells_race(const Cell& cell) const {
    if (cell.write.block && !(touch_ == Touch::kAtomic && cell.write.atomic) &&
        !is_ordered(m_, cell.write, fiber_, buffer_))
      return tell_race(cell.write, "write");
    if (!writes()) return false;
    for (const Access& read : cell.reads)
      if (read.block && !(touch_ == Touch::kAtomic && read.atomic) &&
          !is_ordered(m_, read, fiber_, buffer_))
        return tell_race(read, "read");
    return false;
  }

  bool tell_race(const Access& before, const char* what) const {
    const bool blocks = before.block != m_.block;
    report(blocks ? "race-blocks" : "race", "%s at %s of %s and %s at %s by thread %d%s, %s",
           verb(touch_), to_string(site_).c_str(), place().c_str(), before.atomic ? "atomic" : what,
           to_string(before.site).c_str(), before.thread, blocks ? " of another block" : "",
           blocks ? "in one launch" : "with no barrier between");
    return true;
  }

  void note(Cell& cell) const {
    if (writes()) cell.write = own_;
    if (!reads()) return;
    Access& last = cell.reads[0];
    if (last.block != own_.block || last.thread / kWarp != own_.thread / kWarp)
      cell.reads[1] = last;
    last = own_;
  }

  Machine& m_;
  Fiber& fiber_;
  Buffer* const buffer_;
  size_t offset_;
  const Touch touch_;
  const Site site_;
  const Access own_;
};

void check_shared(Fiber& fiber, size_t offset, size_t bytes, Touch touch, Site site) {
  const SharedMemory& shared = machine().shared;
  if (!shared.is_within(offset, bytes))
    fail("outside-shared", "%s of %zu bytes at %s, at %s; there are %zu bytes of dynamic memory",
         verb(touch), bytes, to_string(site).c_str(), shared.name_of(offset).c_str(),
         shared.dynamic_bytes);
  Bytes(fiber, nullptr, offset, touch, site).check_and_note(bytes);
}

void check_global(Fiber& fiber, Buffer& buffer, uintptr_t address, size_t bytes, Touch touch,
                  Site site) {
  const int64_t at = static_cast<int64_t>(address - reinterpret_cast<uintptr_t>(buffer.data));
  if (at < 0 || static_cast<size_t>(at) + bytes > buffer.bytes)
    fail("outside-global", "%s of %zu bytes at %s, %" PRId64 " bytes %s a buffer of %zu",
         verb(touch), bytes, to_string(site).c_str(),
         at < 0 ? -at : at + static_cast<int64_t>(bytes) - static_cast<int64_t>(buffer.bytes),
         at < 0 ? "before the start of" : "past the end of", buffer.bytes);
  const auto offset = static_cast<size_t>(at);
  if (touch != Touch::kRead && is_noting_writes()) buffer.save(offset, bytes);
  Bytes(fiber, &buffer, offset, touch, site).check_and_note(bytes);
}

}  // namespace

bool check_access(Fiber& fiber, const void* to, size_t bytes, Touch touch, Site site) {
  Machine& m = machine();
  const auto address = reinterpret_cast<uintptr_t>(to);
  const auto stacks = reinterpret_cast<uintptr_t>(m.stacks);
  if (address >= stacks && address < stacks + m.stack_bytes * m.fibers.size()) {
    const auto owner = static_cast<int>((address - stacks) / m.stack_bytes);
    if (owner != fiber.thread.linear)
      fail("foreign-local", "%s at %s of a local variable of thread %d", verb(touch),
           to_string(site).c_str(), owner);
    return false;
  }
  if (m.shared.contains(address)) {
    const size_t offset = address - reinterpret_cast<uintptr_t>(m.shared.base);
    check_shared(fiber, offset, bytes, touch, site);
    note_traffic(fiber, {{site, true, touch != Touch::kRead}, offset, static_cast<uint8_t>(bytes)});
  } else if (Buffer* const buffer = buffer_at(address)) {
    check_global(fiber, *buffer, address, bytes, touch, site);
    note_traffic(fiber,
                 {{site, false, touch != Touch::kRead}, address, static_cast<uint8_t>(bytes)});
  } else if (touch != Touch::kRead) {
    fail("outside-global", "%s of %zu bytes at %s of the host's memory", verb(touch), bytes,
         to_string(site).c_str());
  }
  return true;
}

void begin_copy(Fiber& fiber, void* to, Site site) {
  check_access(fiber, to, kCopyBytes, Touch::kWrite, site);
  SharedMemory& shared = machine().shared;
  Cell* const cells =
      shared.cell(static_cast<size_t>(static_cast<unsigned char*>(to) - shared.base));
  for (int i = 0; i < kCopyBytes; ++i) cells[i].copy_pending = true;
}

// The bytes are written when they are waited for: who reads them must come after the wait.
void end_copy(Fiber& fiber, void* to, Site site) {
  SharedMemory& shared = machine().shared;
  const auto offset = static_cast<size_t>(static_cast<unsigned char*>(to) - shared.base);
  for (int i = 0; i < kCopyBytes; ++i) shared.cell(offset)[i].copy_pending = false;
  Bytes(fiber, nullptr, offset, Touch::kWrite, site).check_and_note(kCopyBytes);
}

}  // namespace cux::host
