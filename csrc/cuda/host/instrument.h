// The compiler's side of the checker. Kernels are compiled with -fsanitize=thread, which calls a function at each of their
// accesses to memory, and with -fsanitize=alignment; those functions are ours, so programs are linked without a sanitizer's
// library.
#pragma once

namespace cux::host {

/// Whether anything in the program was compiled so.
bool is_instrumented();

}  // namespace cux::host
