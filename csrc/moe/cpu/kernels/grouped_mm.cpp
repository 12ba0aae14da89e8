// A product for each expert, on rows that are sorted by expert:  out_r = x_r · B_e + bias_e.
//
// Reads: rows of x, the weights and biases of the experts.
// Writes: out.
// Task: one segment of rows of one expert by one block of kGroupedColumns columns.
// Order of sums: a chain for each kDepthBlock of the depth, added in order; a row's bits depend on nothing but itself.

#include "moe/cpu/kernels/experts_common.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

/// Elements of packed weights, or of few rows that are multiplied with them unpacked.
template <class E>
int64_t weights_or_rows(int64_t depth) {
  const int64_t packed = pad_depth<E>(depth) * kGroupedColumns,
                rows = pad_columns<E>(depth) * kFewRows;
  return packed > rows ? packed : rows;
}

template <class S>
struct GroupedScratch {
  using T = Accumulate<S>;
  using E = Operand<S>;
  E *weights, *rows;
  T *product, *bias;

  GroupedScratch(const GroupedParams& p, Arena& arena) {
    weights = arena.take<E>(weights_or_rows<E>(p.depth));
    rows = arena.take<E>(kTokenBlock * kDepthStride);
    product = arena.take<T>(kTokenBlock * kGroupedColumns);
    bias = arena.take<T>(kGroupedColumns);
  }
};

template <class S>
void store_grouped(const GroupedParams& p, int64_t first, int64_t rows, int64_t n0, int64_t n,
                   const GroupedScratch<S>& w) {
  if (p.bias.data) add_bias(w.bias, rows, n, w.product, kGroupedColumns);
  for (int64_t r = 0; r < rows; ++r)
    store_row(static_cast<S*>(p.out) + (first + r) * p.N + n0, w.product + r * kGroupedColumns, n);
}

template <class S>
void grouped_task(const GroupedParams& p, int64_t task, void* scratch) {
  using E = Operand<S>;
  Arena arena(scratch);
  const GroupedScratch<S> w(p, arena);
  const int64_t blocks = ceil_div(p.N, kGroupedColumns);
  const Segment segment = p.segments[task / blocks];
  const int64_t n0 = task % blocks * kGroupedColumns, n = at_most(kGroupedColumns, p.N - n0);
  const Strided<S> b = matrix_of<S>(p.b, segment.expert, 0, n0);
  if (p.bias.data) load_bias<S>(p.bias, segment.expert, n0, n, w.bias);
  if (segment.rows <= rows_unpacked(b) && p.depth > 0) {
    const int64_t ld = pad_columns<E>(p.depth);
    gather<E, S>(p.x, segment.first, segment.rows, 0, p.depth, w.weights, ld);
    multiply_few<E>({w.weights, ld, kStep<E>}, segment.rows, b, p.depth, n, w.product,
                    kGroupedColumns);
    return store_grouped<S>(p, segment.first, segment.rows, n0, n, w);
  }
  pack_deep(b, p.depth, n, w.weights);
  for_token_blocks(segment.first, segment.rows, [&](int64_t first, int64_t rows) {
    int64_t k0 = 0;
    do {  // once also where there is no depth: the product is 0 then
      const int64_t depth = at_most(kDepthBlock, p.depth - k0);
      gather<E, S>(p.x, first, rows, k0, depth, w.rows, kDepthStride);
      multiply_block<E>({w.rows, kDepthStride, kStep<E>}, rows, w.weights, k0, depth, n, w.product,
                        kGroupedColumns);
    } while ((k0 += kDepthBlock) < p.depth);
    store_grouped<S>(p, first, rows, n0, n, w);
  });
}

}  // namespace

void moe_grouped_mm(const GroupedParams& p, int64_t task, void* scratch) {
  with_storage(p.dtype, [&](auto s) { grouped_task<decltype(s)>(p, task, scratch); });
}

void moe_grouped_mm_layout(const GroupedParams& p, int64_t* scratch_bytes) {
  with_storage(p.dtype, [&](auto s) {
    Arena arena(nullptr);
    GroupedScratch<decltype(s)> measure(p, arena);
    *scratch_bytes = arena.used();
  });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
