// The table of a call's tensors as the host makes it: what lies in the card's memory, byte by byte.
#pragma once

#include <cstddef>
#include <cstring>
#include <vector>

#include "optim/cuda/problem.h"

namespace fulgurite::cuda {

/// The entry of a tensor; its walk begins at a multiple of kBlock.
inline AdamwEntry entry_of(const AdamwTensor& tensor, const Walk& walk, int32_t group, float* step,
                           const BlockScales& scales = {}) {
  AdamwEntry entry{};
  entry.walk = walk;
  entry.step = step;
  entry.scales = scales;
  entry.key = tensor.key;
  entry.group = group;
  entry.split = tensor.split;
  entry.stochastic = tensor.stochastic;
  for (int k = 0; k < kIndex; ++k) {
    if (!tensor.data[k]) continue;
    entry.data[k] = k == kGrad ? nullptr : tensor.data[k];
    entry.present |= 1u << k;
    const uint32_t shift = tensor.bytes[k] == 4 ? 2 : tensor.bytes[k] == 2 ? 1 : 0;
    entry.formats |= OperandFormat{shift, tensor.dtype[k]}.bits() << 4 * k;
  }
  return entry;
}

/// The gradients' addresses come first: where they alone have changed, so has only the beginning.
class TableImage {
 public:
  /// maps: those of signed and unsigned numbers, or null.
  TableImage(const std::vector<void*>& grads, const std::vector<AdamwEntry>& entries,
             const std::vector<int64_t>& layouts, const DynamicMap* maps = nullptr)
      : count_(static_cast<int64_t>(entries.size())) {
    if (!entries.empty()) {
      const Walk& last = entries.back().walk;
      units_ = (last.position + last.numel + kBlock - 1) / kBlock;
    }
    grads_ = append(grads.data(), grads.size());
    entries_ = append(entries.data(), entries.size());
    layouts_ = append(layouts.data(), layouts.size());
    maps_ = append(maps, maps ? 2 : 0);
  }

  const std::vector<unsigned char>& bytes() const { return bytes_; }
  /// Of an image that was written to `base`, at a multiple of 16 bytes.
  AdamwTable at(const unsigned char* base) const {
    return {reinterpret_cast<const AdamwEntry*>(base + entries_),
            reinterpret_cast<void* const*>(base + grads_),
            reinterpret_cast<const int64_t*>(base + layouts_),
            reinterpret_cast<const DynamicMap*>(base + maps_),
            count_,
            units_};
  }

 private:
  template <class T>
  size_t append(const T* values, size_t n) {
    const size_t at = bytes_.size(), bytes = n * sizeof(T);
    bytes_.resize((at + bytes + 15) / 16 * 16);
    if (bytes != 0) std::memcpy(bytes_.data() + at, values, bytes);
    return at;
  }

  std::vector<unsigned char> bytes_;
  size_t grads_, entries_, layouts_, maps_;
  int64_t count_, units_ = 0;
};

}  // namespace fulgurite::cuda
