#include "attention/cuda/kernels/backward_tiles.cuh"

namespace fulgurite::cuda {

template cux::Error launch_wide_backward<BFloat16, false>(const AttentionCudaBackward&,
                                                          cux::Stream);

}  // namespace fulgurite::cuda
