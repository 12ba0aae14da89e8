#include "optim/cuda/kernels/split_master.cuh"

#include "optim/cuda/launches.h"

namespace fulgurite::cuda {

const char* run_split_master(const SplitProblem& p, int64_t n, void* stream) {
  return launch_split(split_master, p, n, stream);
}
const char* run_join_master(const SplitProblem& p, int64_t n, void* stream) {
  return launch_split(join_master, p, n, stream);
}

}  // namespace fulgurite::cuda
