#include "attention/cuda/kernels/forward_tiles.cuh"

namespace fulgurite::cuda {

cux::Error launch_float32_forward(const AttentionCudaParams& p, cux::Stream stream) {
  using D64 = FmaForward<64, 8, 32>;
  using D128 = FmaForward<128, 4, 64>;
  using D256 = FmaForward<256, 4, 32>;
  if (fits<D64>(p)) return launch_forward<D64, false>(p, stream);
  if (fits<D128>(p)) return launch_forward<D128, false>(p, stream);
  return launch_forward<D256, false>(p, stream);
}

}  // namespace fulgurite::cuda
