// Tensors as the CPU side of the family reads them.
#pragma once

#include <ATen/core/Tensor.h>

#include "common/offsets.h"
#include "linear/plan.h"

namespace fulgurite {

/// (B,C,L)
inline Signal signal(const at::Tensor& t) {
  return {t.const_data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
}
inline Signal signal(const std::optional<at::Tensor>& t) { return t ? signal(*t) : Signal{}; }

inline bool is_float32(const at::Tensor& t) { return t.scalar_type() == at::kFloat; }

/// (B,C,L) in the call's dtype or in float32.
inline Input input(const std::optional<at::Tensor>& t) {
  return t ? Input{signal(*t), is_float32(*t)} : Input{};
}
/// (C,W) as (1,C,W).
inline Input of_channels(const at::Tensor& t) {
  return {{t.const_data_ptr(), 0, t.stride(0), t.stride(1)}, is_float32(t)};
}
/// (C) as (1,C,1).
inline Input channels(const std::optional<at::Tensor>& t) {
  return t ? Input{{t->const_data_ptr(), 0, t->stride(0), 0}, is_float32(*t)} : Input{};
}

/// The sequences of x (B,C,L), or those of a pack, whose offsets are checked here for the operator `op`.
class Sequences {
 public:
  Sequences(const char* op, const at::Tensor& x, const std::optional<at::Tensor>& cu_seqlens)
      : covered_(x.size(2)) {
    if (!cu_seqlens) {
      plan_.add_batch(x.size(0), covered_);
    } else {
      const std::vector<int64_t> offsets = read_offsets(op, "cu_seqlens", *cu_seqlens, covered_);
      plan_.add_pack(offsets);
      covered_ = offsets.back();
    }
  }
  int64_t count() const { return plan_.sequences(); }
  int64_t blocks() const { return plan_.blocks(); }
  /// Positions of a batch entry that a sequence has.
  int64_t covered() const { return covered_; }
  Pieces pieces() const { return plan_.pieces(); }
  /// Positions past the last sequence belong to nobody.
  void clear_tail(const at::Tensor& t) const {
    if (covered_ < t.size(-1)) t.narrow(-1, covered_, t.size(-1) - covered_).zero_();
  }

 private:
  SequencePlan plan_;
  int64_t covered_;
};

}  // namespace fulgurite
