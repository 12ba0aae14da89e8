// Builds the walks of simd/walk.h from tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

#include "common/ceil_div.h"
#include "simd/walk.h"

namespace fulgurite {

/// Positions of a list of walks that one task takes.
inline constexpr int64_t kPositionsPerTask = 16384;

/// Two indices share an element of memory (an expanded tensor, overlapping windows). Strides that
/// interleave without sharing, which no view of torch makes, count as overlapping too.
inline bool overlaps_itself(const at::Tensor& tensor) {
  if (tensor.is_non_overlapping_and_dense() || tensor.numel() <= 1) return false;
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int64_t d = 0; d < tensor.dim(); ++d)
    if (tensor.size(d) > 1) dims.emplace_back(tensor.stride(d), tensor.size(d));
  std::sort(dims.begin(), dims.end());
  int64_t reach = 0;  // largest offset that the faster dimensions reach
  for (const auto& [stride, size] : dims) {
    if (stride <= reach) return true;
    reach += stride * (size - 1);
  }
  return false;
}

enum class WalkOrder {
  kMemory,   // follows the first operand's memory: fastest
  kLogical,  // row-major indices: what a sum needs whose bits must not depend on strides
};

/// Walks of a list, and the tables of those that are not dense.
template <int kOperands>
class WalkList {
 public:
  using Operands = std::array<const at::Tensor*, kOperands>;  // null: absent; the first one is not

  /// Tensors begin at multiples of `grain`.
  explicit WalkList(WalkOrder order = WalkOrder::kMemory, int64_t grain = kWalkGrain)
      : order_(order), grain_(grain) {}

  void reserve(size_t n) { walks_.reserve(n); }

  void add(const Operands& operands) {
    Walk walk{positions_, operands[0]->numel(), 0, 0};
    if (!dense(operands)) add_table(operands, walk);
    append(walk);
  }
  /// Operands of which all are dense in one order.
  void add_dense(int64_t numel) { append({positions_, numel, 0, 0}); }

  const Walk* walks() const { return walks_.data(); }
  const int64_t* layouts() const { return layouts_.data(); }
  size_t layout_entries() const { return layouts_.size(); }
  int64_t count() const { return static_cast<int64_t>(walks_.size()); }
  int64_t positions() const { return positions_; }
  int64_t elements() const { return elements_; }

 private:
  bool dense(const Operands& operands) const {
    const at::Tensor& first = *operands[0];
    if (!(first.is_contiguous() ||
          (order_ == WalkOrder::kMemory && first.is_non_overlapping_and_dense())))
      return false;
    for (const at::Tensor* operand : operands)
      if (operand && operand->strides() != first.strides() &&
          !(operand->is_contiguous() && first.is_contiguous()))
        return false;
    return true;
  }

  void append(const Walk& walk) {
    positions_ += ceil_div(walk.numel, grain_) * grain_;
    elements_ += walk.numel;
    walks_.push_back(walk);
  }

  void add_table(const Operands& operands, Walk& walk) {
    const at::Tensor& first = *operands[0];
    std::vector<int64_t> dims;
    for (int64_t d = 0; d < first.dim(); ++d)
      if (first.size(d) != 1) dims.push_back(d);
    if (order_ == WalkOrder::kMemory)
      std::stable_sort(dims.begin(), dims.end(),
                       [&](int64_t a, int64_t b) { return first.stride(a) > first.stride(b); });
    std::vector<int64_t> sizes;
    std::vector<std::array<int64_t, kOperands>> strides;
    for (const int64_t d : dims) {
      std::array<int64_t, kOperands> own{};
      bool merges = !sizes.empty();
      for (int k = 0; k < kOperands; ++k) {
        own[k] = operands[k] ? operands[k]->stride(d) : 0;
        merges = merges && strides.back()[k] == own[k] * first.size(d);
      }
      if (merges) {
        sizes.back() *= first.size(d);
        strides.back() = own;
      } else {
        sizes.push_back(first.size(d));
        strides.push_back(own);
      }
    }
    walk.dims = static_cast<int32_t>(sizes.size());
    walk.layout = static_cast<int64_t>(layouts_.size());
    layouts_.insert(layouts_.end(), sizes.begin(), sizes.end());
    for (const auto& own : strides) layouts_.insert(layouts_.end(), own.begin(), own.end());
  }

  WalkOrder order_;
  int64_t grain_;
  std::vector<Walk> walks_;
  std::vector<int64_t> layouts_;
  int64_t positions_ = 0, elements_ = 0;
};

}  // namespace fulgurite
