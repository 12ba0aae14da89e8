#include "cuda/table.cuh"

#include "cuda/table.h"

namespace fulgurite::cuda {

cux::Error run_write_table(const std::vector<unsigned char>& kept,
                           const std::vector<unsigned char>& now, unsigned char* to,
                           cux::Stream stream) {
  return write_table(kept, now, to, stream);
}

}  // namespace fulgurite::cuda
