#include "attention/cuda/kernels/backward_tiles.cuh"

namespace fulgurite::cuda {

template cux::Error launch_narrow_backward<Half, false>(const AttentionCudaBackward&, cux::Stream);

}  // namespace fulgurite::cuda
