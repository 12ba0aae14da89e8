#include "optim/cuda/kernels/adamw_8bit.cuh"

namespace fulgurite::cuda {

cux::Error run_adamw_8bit_update(const AdamwUpdateProblem& p, cux::Stream stream) {
  return launch_8bit_update(p, stream);
}

}  // namespace fulgurite::cuda
