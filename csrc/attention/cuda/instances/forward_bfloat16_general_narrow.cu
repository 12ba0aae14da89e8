#include "attention/cuda/kernels/forward_tiles.cuh"

namespace fulgurite::cuda {

template cux::Error launch_narrow_forward<BFloat16, false>(const AttentionCudaParams&, cux::Stream);

}  // namespace fulgurite::cuda
