#include "attention/cuda/kernels/backward_tiles.cuh"

namespace fulgurite::cuda {

template cux::Error launch_wide_backward<Half, true>(const AttentionCudaBackward&, cux::Stream);

}  // namespace fulgurite::cuda
