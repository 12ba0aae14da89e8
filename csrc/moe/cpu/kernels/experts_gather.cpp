// Rows sorted by expert, as operands: every block of columns of a hidden layer reads them again.
//
// Reads: rows of tokens, through a permutation or as they lie.
// Writes: the same rows as operands, zeros up to `width`.
// Task: a range of sorted positions.
// Order of sums: none.

#include "moe/cpu/kernels/experts_common.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class S>
void gather_rows(const GatherParams& p, int64_t first, int64_t last) {
  using E = Operand<S>;
  gather<E, S>(p.rows, first, last - first, 0, p.N, static_cast<E*>(p.to) + first * p.width,
               p.width);
}

}  // namespace

void moe_experts_gather(const GatherParams& p, int64_t first, int64_t last) {
  with_storage(p.dtype, [&](auto s) { gather_rows<decltype(s)>(p, first, last); });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
