// csrc/cuda/torch_runtime.cpp for tensors of the CPU, whose kernels the executor runs.
#include "cuda/torch_runtime.h"

#include <set>

#include "cuda/host/memory.h"
#include "memory_mutex.h"

namespace fulgurite::cuda {
namespace {

/// Of the call that runs.
std::set<void*> own_memory;

}  // namespace

cux::Stream begin_call(c10::Device) {
  memory_mutex().lock();
  return nullptr;
}

void begin_memory(const at::Tensor& memory) {
  void* const data = memory.mutable_data_ptr();
  if (!data || !cux::host::buffer_at(reinterpret_cast<uintptr_t>(data))) return;
  cux::host::written_by_nobody(data);
  own_memory.insert(data);
}

// What follows the call may write to its results without the executor's knowledge.
void end_call() {
  for (void* const data : own_memory)
    if (cux::host::Buffer* const buffer = cux::host::buffer_at(reinterpret_cast<uintptr_t>(data)))
      cux::host::written_by_host(data, buffer->bytes);
  own_memory.clear();
  memory_mutex().unlock();
}

}  // namespace fulgurite::cuda
