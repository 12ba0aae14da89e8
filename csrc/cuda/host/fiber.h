// Threads of a kernel as fibers: each has a stack of its own and runs until it waits. A switch is a few instructions on x86-64;
// other machines, and builds with CUX_UCONTEXT, take ucontext's.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(CUX_UCONTEXT)
#define CUX_UCONTEXT
#endif
#if defined(CUX_UCONTEXT)
#include <ucontext.h>
#endif

namespace cux::host {

struct Strand {
#if defined(CUX_UCONTEXT)
  ucontext_t context;
#else
  void* stack_pointer = nullptr;
#endif
  char* stack =
      nullptr;  // of the strand that launches: filled in when it is first left, where a sanitizer wants it
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
};

/// Makes `strand`, whose stack is given, begin with entry(), which must not return.
void begin_strand(Strand& strand, void (*entry)());
/// Runs `to` until something switches back. A strand that ends is never switched back to.
void switch_strand(Strand& from, Strand& to, bool from_ends);
/// The first thing that an entry calls.
void entered_from(Strand& launching);

}  // namespace cux::host
