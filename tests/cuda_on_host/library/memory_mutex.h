// The executor knows one thread.
#pragma once

#include <mutex>

namespace fulgurite {

/// Held while memory of tensors is taken or given back, and by a call while its kernels run.
inline std::recursive_mutex& memory_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

}  // namespace fulgurite
