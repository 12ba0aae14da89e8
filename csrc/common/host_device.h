// Small functions that kernels of every device and instruction set share.
#pragma once

#if defined(__CUDACC__)
#define FULGURITE_HOST_DEVICE __host__ __device__ inline
#else
// Always inlined: a copy left to the linker could be that of a newer machine's object.
#define FULGURITE_HOST_DEVICE inline __attribute__((always_inline))
#endif
