// A task's scratch memory, from an address that is a multiple of 64.
#pragma once

#include <cstdint>
#include <vector>

namespace fulgurite {

class Scratch {
 public:
  explicit Scratch(int64_t bytes) : memory_(static_cast<size_t>(bytes) + 64) {}
  void* data() {
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory_.data()) + 63) / 64 * 64);
  }

 private:
  std::vector<char> memory_;
};

/// Tasks one after the other.
template <class Task, class Params>
void run(Task& task, const Params& p, int64_t tasks, int64_t scratch_bytes) {
  Scratch scratch(scratch_bytes);
  for (int64_t i = 0; i < tasks; ++i) task(p, i, scratch.data());
}

}  // namespace fulgurite
