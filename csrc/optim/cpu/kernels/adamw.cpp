// AdamW over lists of tensors: rows are cut into blocks, which step.h updates.
//
// Reads: gradients, parameters or masters, moments; the numbers of the step.
// Writes: parameters, masters, moments, copies and averages; zeros into the gradients where asked.
// Task: a range of positions (simd/walk.h), which may hold many small tensors or a piece of a large one.
// Order of sums: none; every element is on its own and every operation is rounded once.

#include "optim/cpu/kernels/direct.h"
#include "optim/cpu/kernels/rows.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class T>
void update_row(const AdamwProblem& p, const AdamwTensor& tensor, const int64_t* offsets,
                const int64_t* strides, int64_t n) {
  alignas(64) T buffers[6][kBlock];
  const StepNumbers<T> scalars(p.scalars[tensor.scalars]);
  Row<T> row(tensor, offsets, strides);
  const int64_t direct = sizeof(T) == 4 ? update_direct(p, tensor, offsets, strides, n) : 0;
  row.advance(direct);
  for (int64_t done = direct; done < n; done += kBlock) {
    const int64_t size = n - done < kBlock ? n - done : kBlock;
    if (done + kBlock < n) row.prefetch(size);
    Block<T> b{};
    b.p = row.read_value(buffers[0], size);
    b.g = row.read(kGrad, buffers[1], size);
    b.m = row.read(kExpAvg, buffers[2], size);
    b.v = row.read(kExpAvgSq, buffers[3], size);
    b.vmax = row.read(kMaxExpAvgSq, buffers[4], size);
    b.ema = row.read(kEma, buffers[5], size);

    update_block(scalars, b, size);
    if (b.ema) update_ema(scalars, b, size);

    row.write_value(p.seed, b.p, size);
    row.write(kExpAvg, b.m, size);
    row.write(kExpAvgSq, b.v, size);
    row.write(kMaxExpAvgSq, b.vmax, size);
    row.write(kEma, b.ema, size);
    row.write(kCopy, b.p, size);
    if (p.zero_grads) row.zero(kGrad, size);
    row.advance(size);
  }
}

}  // namespace

void adamw_update(const AdamwProblem& p, int64_t first, int64_t last) {
  walk_tensors(p.walks, p.count, first, last, [&](int64_t t, int64_t begin, int64_t end) {
    const AdamwTensor& tensor = p.tensors[t];
    walk_rows<kAdamwOperands>(p.walks[t], p.layouts, begin, end,
                              [&](const int64_t* offsets, const int64_t* strides, int64_t n) {
                                if (tensor.dtype[kParam] == Dtype::kFloat64)
                                  update_row<double>(p, tensor, offsets, strides, n);
                                else
                                  update_row<float>(p, tensor, offsets, strides, n);
                              });
  });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
