// Launches of kernels and what they ask of the card, the same on a card and on the host's executor.
#pragma once

#include "cuda/cux.h"
#include "cuda/stream.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#include <cstddef>
#endif

namespace cux {

/// The card that a launch goes to.
struct Device {
  int architecture;  // 80 for sm_80
  int multiprocessors;
  int shared_bytes;  // that a block may have
};

#if defined(__CUDACC__)

inline Error error_of(cudaError_t status) {
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

inline Error device(Device& d) {
  int card = 0, major = 0, minor = 0;
  cudaError_t status = cudaGetDevice(&card);
  const auto ask = [&](int& value, cudaDeviceAttr attribute) {
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(&value, attribute, card);
  };
  ask(major, cudaDevAttrComputeCapabilityMajor);
  ask(minor, cudaDevAttrComputeCapabilityMinor);
  ask(d.multiprocessors, cudaDevAttrMultiProcessorCount);
  ask(d.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  d.architecture = 10 * major + minor;
  return error_of(status);
}

/// Runs kernel(arguments…) in `grid` blocks of `block` threads with `shared_bytes` of dynamic shared memory. Nothing is waited
/// for.
template <class... Parameters, class... Arguments>
Error launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
             Stream stream, const Arguments&... arguments) {
  constexpr std::size_t kWithoutAsking = 48 * 1024;
  if (shared_bytes > kWithoutAsking) {
    const cudaError_t status = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (status != cudaSuccess) return error_of(status);
  }
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  return error_of(cudaGetLastError());
}

#else

/// The card of CUX_ARCH.
inline Error device(Device& d) {
  const host::Card& card = host::card();
  d = {card.architecture, card.multiprocessors, card.shared_bytes};
  return nullptr;
}

/// The error is the first report of the executor or its checker.
template <class... Parameters, class... Arguments>
Error launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, Stream,
             const Arguments&... arguments) {
  return host::run(reinterpret_cast<const void*>(kernel), grid, block, shared_bytes,
                   [=] { kernel(arguments...); });
}

#endif

}  // namespace cux
