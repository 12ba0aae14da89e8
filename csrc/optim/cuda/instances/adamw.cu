#include "optim/cuda/kernels/adamw.cuh"

namespace fulgurite::cuda {

cux::Error run_adamw_count(const AdamwCountProblem& p, cux::Stream stream) {
  return launch_count(p, stream);
}
cux::Error run_adamw_update(const AdamwUpdateProblem& p, cux::Stream stream) {
  return launch_update(p, stream);
}

}  // namespace fulgurite::cuda
