// A kernel of CUDA in the table of kernels.
#pragma once

#include "common/kernel_info.h"

namespace fulgurite::cuda {

class Kernel final : public KernelInfo {
 public:
  explicit Kernel(const char* name) : KernelInfo("cuda", name) {}

 protected:
  /// FULGURITE_CUDA_TARGETS: "sm_80 sm_90", or "host" where the executor runs them.
  std::vector<std::string> variants() const override;
  /// Which of them a card runs is the card's choice.
  std::string active() const override { return "cuda"; }
  std::string ran() const override { return "cuda"; }
};

}  // namespace fulgurite::cuda
