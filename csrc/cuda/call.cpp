#include "cuda/call.h"

#include <ATen/ops/empty.h>

#include <sstream>

#include "common/check.h"
#include "cuda/table.h"
#include "cuda/torch_runtime.h"

namespace fulgurite::cuda {

std::vector<std::string> Kernel::variants() const {
  std::istringstream targets(FULGURITE_CUDA_TARGETS);
  std::vector<std::string> names;
  for (std::string name; targets >> name;) names.push_back(name);
  return names;
}

Call::Call(const char* op, const at::Tensor& on)
    : op_(op), options_(on.options()), guard_(on.device()), stream_(begin_call(on.device())) {}

Call::~Call() { end_call(); }

void Call::refuse_float64(const char* name, at::TensorList tensors) const {
  const char* const op = op_;
  for (size_t i = 0; i < tensors.size(); ++i)
    FULGURITE_CHECK_SERVED(tensors[i].scalar_type() != at::kDouble,
                           "float64 runs on the CPU only, got it in ", name, "[", i, "]");
}

at::Tensor Call::empty(at::IntArrayRef sizes, at::ScalarType dtype) const {
  at::Tensor memory = at::empty(sizes, options_.dtype(dtype));
  begin_memory(memory);
  return memory;
}

at::Tensor Call::write(const CallTable& table) const {
  const auto& bytes = table.bytes();
  at::Tensor memory = empty({static_cast<int64_t>(bytes.size())}, at::kByte);
  check(run_write_table({}, bytes, memory.mutable_data_ptr<uint8_t>(), stream_));
  return memory;
}

at::Tensor Call::write(const std::vector<uint8_t>& bytes, KeptTable* kept) const {
  KeptTable fresh;
  KeptTable& table = kept && !is_captured(stream_) ? *kept : fresh;
  const auto size = static_cast<int64_t>(bytes.size());
  if (!table.memory.defined() || table.memory.numel() != size ||
      table.memory.device() != options_.device())
    table = {empty({size}, at::kByte), {}};
  check(run_write_table(table.bytes, bytes, table.memory.mutable_data_ptr<uint8_t>(), stream_));
  table.bytes = bytes;
  return table.memory;
}

void Call::check(cux::Error error) const {
  const char* const op = op_;
  FULGURITE_CHECK(!error, "CUDA: ", error);
}

}  // namespace fulgurite::cuda
