#include "optim/cuda/kernels/split_master.cuh"

namespace fulgurite::cuda {

cux::Error run_split_master(const SplitMasterProblem& p, cux::Stream stream) {
  return launch_split(split_master, p, stream);
}
cux::Error run_join_master(const SplitMasterProblem& p, cux::Stream stream) {
  return launch_split(join_master, p, stream);
}

}  // namespace fulgurite::cuda
