#include "cuda/host/fiber.h"

#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(CUX_UCONTEXT)
// Saves what a function must preserve, takes the other stack, and returns there.
extern "C" void cux_switch_stacks(void** save, void* load);
asm(R"(
.text
.globl cux_switch_stacks
.hidden cux_switch_stacks
.type cux_switch_stacks, @function
cux_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cux_switch_stacks, .-cux_switch_stacks
)");
#endif

namespace cux::host {
namespace {

#if defined(CUX_UCONTEXT)
void switch_context(Strand& from, Strand& to) { swapcontext(&from.context, &to.context); }
#else
void switch_context(Strand& from, Strand& to) {
  cux_switch_stacks(&from.stack_pointer, to.stack_pointer);
}
#endif

}  // namespace

void begin_strand(Strand& strand, void (*entry)()) {
  strand.fake_stack = nullptr;
#if defined(CUX_UCONTEXT)
  getcontext(&strand.context);
  strand.context.uc_stack.ss_sp = strand.stack;
  strand.context.uc_stack.ss_size = strand.stack_bytes;
  strand.context.uc_link = nullptr;
  makecontext(&strand.context, entry, 0);
#else
  constexpr int kSaved = 6;
  auto top = reinterpret_cast<uintptr_t>(strand.stack + strand.stack_bytes) & ~uintptr_t{15};
  auto** slot = reinterpret_cast<void**>(top);
  *--slot =
      nullptr;  // where a caller's return address would be: leaves the stack aligned as a call does
  *--slot = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSaved; ++i) *--slot = nullptr;
  strand.stack_pointer = slot;
#endif
}

void switch_strand(Strand& from, Strand& to, bool from_ends) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(from_ends ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
  switch_context(from, to);
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#else
  (void)from_ends;
  switch_context(from, to);
#endif
}

void entered_from(Strand& launching) {
#if defined(__SANITIZE_ADDRESS__)
  const void* stack = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
  if (!launching.stack) {
    launching.stack = static_cast<char*>(const_cast<void*>(stack));
    launching.stack_bytes = bytes;
  }
#else
  (void)launching;
#endif
}

}  // namespace cux::host
