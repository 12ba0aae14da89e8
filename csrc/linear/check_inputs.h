// Checks of inputs that several operators of the family make.
#pragma once

#include "common/arguments.h"
#include "common/offsets.h"

namespace fulgurite {

/// Parameters may stay in float32 beside inputs of 16 bits.
inline void check_own_or_float32(const char* op, const char* name, const Tensor& tensor,
                                 const char* as, const Tensor& other) {
  FULGURITE_CHECK_TYPE(
      tensor.scalar_type() == other.scalar_type() || tensor.scalar_type() == at::kFloat,
      "expected ", name, " of ", as, "'s dtype ", other.scalar_type(), " or float32, got ",
      tensor.scalar_type());
}

/// States and what is kept of them.
inline void check_wide(const char* op, const char* name, const Tensor& tensor, const Tensor& x) {
  const at::ScalarType wide = accumulate_type(x.scalar_type());
  FULGURITE_CHECK_TYPE(tensor.scalar_type() == wide, "expected ", name, " of dtype ", wide,
                       ", got ", tensor.scalar_type());
}

/// The number of sequences: of a pack whose batch is 1, or the batch.
inline c10::SymInt check_sequences(const char* op, const char* name, const Tensor& x,
                                   const OptionalTensor& cu_seqlens) {
  if (!cu_seqlens) return x.sym_size(0);
  check_dim(op, "cu_seqlens", *cu_seqlens, 1, "[sequences + 1]");
  FULGURITE_CHECK(cu_seqlens->sym_size(0) >= 1,
                  "expected cu_seqlens of shape [sequences + 1], got ", cu_seqlens->sym_sizes());
  check_place(op, "cu_seqlens", *cu_seqlens, x);
  FULGURITE_CHECK(same_size(x.sym_size(0), 1), "expected ", name,
                  " with a batch of 1 with cu_seqlens, got ", x.sym_sizes());
  return cu_seqlens->sym_size(0) - 1;
}

inline void check_placed(const char* op, const char* name, const Tensor& tensor,
                         c10::SymIntArrayRef sizes, const Tensor& first) {
  check_sizes(op, name, tensor, sizes);
  check_place(op, name, tensor, first);
}

}  // namespace fulgurite
