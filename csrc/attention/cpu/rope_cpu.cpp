// Rotary position embedding on the CPU, torch side.
#include "attention/check.h"
#include "attention/cpu/kernels/params.h"
#include "common/dtype.h"
#include "common/fresh.h"
#include "cpu/tasks.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace fulgurite {

FULGURITE_KERNEL(attention_rope, attention_rope, RopeTaskFn);

namespace {

/// Strides of a table over x's leading dimensions; 0 where it broadcasts.
void row_strides(const Tensor& table, const Tensor& x, int64_t* strides) {
  for (int64_t d = 0; d + 1 < x.dim(); ++d) {
    const int64_t own = d - (x.dim() - table.dim());
    strides[d] = own < 0 || table.size(own) == 1 ? 0 : table.stride(own);
  }
}

Tensor rope_cpu(const RopeArgs& args) {
  check_rope(args);
  const Tensor &x = args.x, &cos = args.cos, &sin = args.sin;
  Tensor out = fresh_like(x);
  if (out.numel() == 0) return out;
  RopeParams p{};
  p.dtype = kernel_dtype(x.scalar_type());
  p.float32_tables = cos.scalar_type() == at::kFloat;
  p.interleaved = args.interleaved;
  p.conjugate = args.conjugate;
  p.D = x.size(-1);
  p.R = 2 * cos.size(-1);
  p.dims = static_cast<int>(x.dim() - 1);
  for (int d = 0; d < p.dims; ++d) p.sizes[d] = x.size(d);
  row_strides(x, x, p.x_strides);
  row_strides(cos, x, p.cos_strides);
  row_strides(sin, x, p.sin_strides);
  p.x_column_stride = x.stride(-1);
  p.cos_column_stride = cos.stride(-1);
  p.sin_column_stride = sin.stride(-1);
  p.x = x.const_data_ptr();
  p.cos = cos.const_data_ptr();
  p.sin = sin.const_data_ptr();
  p.out = out.mutable_data_ptr();

  const int64_t rows = x.numel() / p.D, rows_per_task = std::max<int64_t>(1, 16384 / p.D);
  run_rows(attention_rope_kernel, p, rows, rows_per_task, x.numel());
  return out;
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, CPU, m) { fulgurite::implement<fulgurite::rope_cpu>(m); }
