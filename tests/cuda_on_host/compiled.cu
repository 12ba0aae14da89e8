// cux as nvcc compiles it: a kernel with copies and tensor cores, its launch, and what product.cuh does not call.
#include "product.cuh"

namespace product {

template cux::Error launch(const Params<cux::BFloat16>&, cux::Stream);
template cux::Error launch(const Params<cux::Half>&, cux::Stream);

__global__ void other_functions(float* data) {
  CUX_SHARED(float, values, 256);
  uint32_t r[4];
  if (threadIdx.x < 64) {
    values[threadIdx.x] = cux::ex2(cux::lg2(data[threadIdx.x]));
    cux::barrier_arrive(1, 128);
  } else {
    cux::barrier_sync(1, 128);
  }
  cux::ldmatrix_x4_trans(r, values + 4 * (threadIdx.x % 32));
  cux::store_global(data, cux::load_global4(data + 1));
  cux::unpack2<cux::BFloat16>(r[0], data[20], data[21]);
  cux::unpack2<cux::Half>(r[1], data[22], data[23]);
  cux::store_global(data + 2, cux::load_global8(data + 4));
  cux::store_global(data + 8, cux::load_global16(data + 12));
  cux::store_global(data + 16,
                    cux::Words<4>{{r[0], r[1], cux::pack2<cux::BFloat16>(data[0], data[1]),
                                   cux::pack2<cux::Half>(data[2], data[3])}});
}

cux::Error launch_other_functions(float* data, cux::Stream stream) {
  cux::Device device{};
  if (const cux::Error error = cux::device(device)) return error;
  return cux::launch(other_functions, dim3(static_cast<unsigned>(device.multiprocessors)),
                     dim3(128), 0, stream, data);
}

}  // namespace product
