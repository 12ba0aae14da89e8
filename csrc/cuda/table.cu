#include "cuda/table.cuh"

#include "cuda/table.h"

namespace fulgurite::cuda {

cux::Error run_write_table(const std::vector<unsigned char>& kept,
                           const std::vector<unsigned char>& now, unsigned char* to,
                           cux::Stream stream) {
  return write_table(kept, now, to, stream);
}

bool is_captured([[maybe_unused]] cux::Stream stream) {
#if defined(__CUDACC__)
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  return cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status) == cudaSuccess &&
         status != cudaStreamCaptureStatusNone;
#else
  return false;
#endif
}

}  // namespace fulgurite::cuda
