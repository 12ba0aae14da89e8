#include "optim/cuda/kernels/adamw_8bit.cuh"

#include "optim/cuda/launches.h"

namespace fulgurite::cuda {

const char* run_adamw_8bit_update(const AdamwUpdateProblem& p, void* stream) {
  return launch_8bit_update(p, stream);
}

}  // namespace fulgurite::cuda
