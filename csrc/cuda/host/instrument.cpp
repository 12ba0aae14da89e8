#include "cuda/host/instrument.h"

#include <cstddef>
#include <cstdint>

#include "cuda/host/machine.h"
#include "cuda/host/report.h"

namespace cux::host {
namespace {

bool instrumented = false;

void touch(const void* address, size_t bytes, Touch kind, Site site) {
  const AtWork at_work;
  Machine& m = machine();
  if (!settings().check || !check_access(*m.running, address, bytes, kind, site)) return;
  if (m.schedule.preempt && ++m.accesses >= m.schedule.preempt) {
    m.accesses = 0;
    give_way();
  }
}

[[maybe_unused]] void touched(const void* address, size_t bytes, Touch kind,
                              const void* return_address) {
  if (current_thread && !machine().in_executor)
    touch(address, bytes, kind, site_of_return_address(return_address));
}

/// What g++ passes to the handler of -fsanitize=alignment.
struct TypeMismatch {
  const char* file;
  uint32_t line, column;
  const void* type;
  unsigned char log_alignment, kind;
};

}  // namespace

bool is_instrumented() { return instrumented; }

void note_read(const void* from, size_t bytes, Location at) {
  touch(from, bytes, Touch::kRead, site_of(at));
}
void note_write(void* to, size_t bytes, Location at) {
  touch(to, bytes, Touch::kWrite, site_of(at));
}
void note_atomic(void* address, size_t bytes, Location at) {
  touch(address, bytes, Touch::kAtomic, site_of(at));
}
void misaligned(const void* address, size_t bytes, Location at) {
  const AtWork at_work;
  fail("misaligned", "access of %zu bytes at %s to %p", bytes, to_string(site_of(at)).c_str(),
       address);
}

}  // namespace cux::host

#if !defined(__SANITIZE_ADDRESS__)  // where sanitizers are linked these are theirs
// The names are g++'s. There is no other use of memory_order or of atomics in kernels than cux's own.
#define CUX_HOOK(name, bytes, kind)                                                          \
  extern "C" void name(void* address) {                                                      \
    cux::host::touched(address, bytes, cux::host::Touch::kind, __builtin_return_address(0)); \
  }
#define CUX_HOOKS(bytes)                                 \
  CUX_HOOK(__tsan_read##bytes, bytes, kRead)             \
  CUX_HOOK(__tsan_write##bytes, bytes, kWrite)           \
  CUX_HOOK(__tsan_unaligned_read##bytes, bytes, kRead)   \
  CUX_HOOK(__tsan_unaligned_write##bytes, bytes, kWrite) \
  CUX_HOOK(__tsan_volatile_read##bytes, bytes, kRead)    \
  CUX_HOOK(__tsan_volatile_write##bytes, bytes, kWrite)
CUX_HOOKS(1)
CUX_HOOKS(2)
CUX_HOOKS(4)
CUX_HOOKS(8)
CUX_HOOKS(16)

extern "C" {
void __tsan_read_range(void* address, size_t bytes) {
  cux::host::touched(address, bytes, cux::host::Touch::kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
  cux::host::touched(address, bytes, cux::host::Touch::kWrite, __builtin_return_address(0));
}
void __tsan_init() { cux::host::instrumented = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}

void __ubsan_handle_type_mismatch_v1(void* mismatch, void* to) {
  const auto* const data = static_cast<const cux::host::TypeMismatch*>(mismatch);
  const auto address = reinterpret_cast<uintptr_t>(to);
  const uintptr_t alignment = uintptr_t{1} << data->log_alignment;
  if (!cux::host::current_thread || cux::host::machine().in_executor || address % alignment == 0)
    return;
  const cux::host::AtWork at_work;
  cux::host::fail("misaligned", "access at %s:%u to %p, which is not at a multiple of %zu",
                  data->file, data->line, to, size_t{alignment});
}
}
#endif
