#include "attention/cuda/kernels/forward_tiles.cuh"

namespace fulgurite::cuda {

template cux::Error launch_narrow_forward<Half, true>(const AttentionCudaParams&, cux::Stream);

}  // namespace fulgurite::cuda
