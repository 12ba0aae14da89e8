#include "optim/cuda/kernels/adamw.cuh"

#include "optim/cuda/launches.h"

namespace fulgurite::cuda {

const char* run_adamw_count(const AdamwCountProblem& p, void* stream) {
  return launch_count(p, stream);
}
const char* run_adamw_update(const AdamwUpdateProblem& p, void* stream) {
  return launch_update(p, stream);
}

}  // namespace fulgurite::cuda
