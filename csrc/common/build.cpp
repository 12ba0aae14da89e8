#include <torch/headeronly/version.h>

#include "fulgurite/config.h"

namespace fulgurite {

const char* version() { return FULGURITE_VERSION; }

const char* torch_version() { return TORCH_VERSION; }

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "g++ " __VERSION__;
#endif
}

}  // namespace fulgurite
