// Which instances of the backward a call takes.
#include "attention/cuda/backward.h"
#include "attention/cuda/kernels/shared_tile.cuh"

namespace fulgurite::cuda {
namespace {

template <class T, bool kPlain>
cux::Error launch_of_width(const AttentionCudaBackward& p, cux::Stream stream) {
  return p.D <= 96 && p.Dv <= 96 ? launch_narrow_backward<T, kPlain>(p, stream)
                                 : launch_wide_backward<T, kPlain>(p, stream);
}

template <class T>
cux::Error launch(const AttentionCudaBackward& p, cux::Stream stream) {
  return is_plain(p) ? launch_of_width<T, true>(p, stream) : launch_of_width<T, false>(p, stream);
}

}  // namespace

cux::Error attention_backward(AttentionCudaBackward p, cux::Stream stream) {
  const int64_t per_chunk = p.dtype == Dtype::kFloat32 ? 4 : 8;
  const Tensor4 out{p.out.data, {p.out.strides[0], p.out.strides[1], p.out.strides[2], 1}};
  p.wide = has_wide_rows(p) && has_wide_rows(out, p.Dv, per_chunk) &&
           (!p.grad_out.data || has_wide_rows(p.grad_out, p.Dv, per_chunk));
  if (p.dtype == Dtype::kBFloat16) return launch<BFloat16>(p, stream);
  if (p.dtype == Dtype::kFloat16) return launch<Half>(p, stream);
  return launch_float32_backward(p, stream);
}

}  // namespace fulgurite::cuda
