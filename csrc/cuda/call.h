// What every operator's torch side on a card needs: torch's device and stream, memory from torch, tables, errors with the operator's
// name. Nothing waits for the card. Torch sides see ATen's tensors and c10, and nothing of torch's own CUDA half, so that the library
// is built against a torch without one too.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <vector>

#include "common/kept_table.h"
#include "cuda/kernel.h"
#include "cuda/stream.h"

namespace fulgurite::cuda {

/// Arrays that kernels of a call read, laid out for one piece of memory on the card.
class CallTable {
 public:
  /// An array's place in it.
  template <class T>
  struct Place {
    std::size_t offset;
    const T* in(const at::Tensor& memory) const {
      return reinterpret_cast<const T*>(memory.const_data_ptr<uint8_t>() + offset);
    }
  };

  template <class T>
  Place<T> add(const T* values, std::size_t count) {
    static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= kAlignment);
    const std::size_t offset = bytes_.size();
    const auto* const from = reinterpret_cast<const uint8_t*>(values);
    bytes_.insert(bytes_.end(), from, from + count * sizeof(T));
    bytes_.resize((bytes_.size() + kAlignment - 1) / kAlignment * kAlignment);
    return {offset};
  }
  const std::vector<uint8_t>& bytes() const { return bytes_; }

 private:
  static constexpr std::size_t kAlignment = 16;
  std::vector<uint8_t> bytes_;
};

/// Where an optional number of a call is on the card.
inline const float* scalar_or_null(const std::optional<at::Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<float>() : nullptr;
}

/// A call of operator `op`, on the device of one of its tensors.
class Call {
 public:
  Call(const char* op, const at::Tensor& on);
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  /// float64 has no kernels here. To be asked before anything is written.
  void refuse_float64(const char* name, at::TensorList tensors) const;

  /// Memory that this call's kernels write before anybody reads it.
  at::Tensor empty(at::IntArrayRef sizes, at::ScalarType dtype) const;
  /// The table in memory of the card. It may be freed once the kernels that read it are launched: the stream has an order.
  at::Tensor write(const CallTable& table) const;
  /// The same of a table's bytes, of which only those that have changed are written if the table is kept. A graph that is being
  /// captured gets a table of its own, which nobody changes until it is replayed.
  at::Tensor write(const std::vector<uint8_t>& bytes, KeptTable* kept) const;

  /// Launches by `launcher`, which gives `kernel`'s row of the table `blocks` pieces of work.
  template <class Params>
  void run(Kernel& kernel, int64_t blocks, cux::Error (*launcher)(const Params&, cux::Stream),
           const Params& params) const {
    kernel.count(blocks, 1);
    check(launcher(params, stream_));
  }

 private:
  /// Raises RuntimeError.
  void check(cux::Error error) const;

  const char* op_;
  at::TensorOptions options_;
  c10::DeviceGuard guard_;
  cux::Stream stream_;
};

}  // namespace fulgurite::cuda
