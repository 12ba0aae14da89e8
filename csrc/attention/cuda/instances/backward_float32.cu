#include "attention/cuda/kernels/backward_tiles.cuh"

namespace fulgurite::cuda {

cux::Error launch_float32_backward(const AttentionCudaBackward& p, cux::Stream stream) {
  using D64 = FmaBackward<64, 4, 4, 32>;
  using D128 = FmaBackward<128, 4, 4, 32>;
  using D256 = FmaBackward<256, 4, 2, 16>;
  if (fits<D64>(p)) return launch_gradients<D64, D64, false, false>(p, stream);
  if (fits<D128>(p)) return launch_gradients<D128, D128, false, true>(p, stream);
  return launch_gradients<D256, D256, false, true>(p, stream);
}

}  // namespace fulgurite::cuda
