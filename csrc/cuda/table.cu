#include "cuda/table.h"

#include <algorithm>
#include <cstring>

#include "cuda/launch.h"

namespace fulgurite::cuda {
namespace {

using Words = cux::Words<4>;
constexpr int kThreads = 128;

/// What one launch carries. Arguments of a kernel have room for 32,764 bytes since CUDA 12.1.
template <int kWords>
struct Part {
  Words* to;
  int64_t count;
  Words words[kWords];
};
constexpr int kFew = 64, kMany = 2046;
static_assert(sizeof(Part<kMany>) <= 32764);

template <int kWords>
__global__ void __launch_bounds__(kThreads) write_part(const __grid_constant__ Part<kWords> part) {
  for (int64_t i = threadIdx.x; i < part.count; i += kThreads)
    cux::store_global(part.to + i, part.words[i]);
}

template <int kWords>
cux::Error launch_part(Words* to, const unsigned char* table, std::size_t bytes,
                       cux::Stream stream) {
  Part<kWords> part{to, static_cast<int64_t>((bytes + sizeof(Words) - 1) / sizeof(Words)), {}};
  std::memcpy(part.words, table, bytes);
  return cux::launch(write_part<kWords>, dim3(1), dim3(kThreads), 0, stream, part);
}

}  // namespace

cux::Error write_table(void* to, const void* table, std::size_t bytes, cux::Stream stream) {
  const auto* from = static_cast<const unsigned char*>(table);
  auto* words = static_cast<Words*>(to);
  while (bytes > 0) {
    const std::size_t part = std::min(bytes, kMany * sizeof(Words));
    const cux::Error error = part <= kFew * sizeof(Words)
                                 ? launch_part<kFew>(words, from, part, stream)
                                 : launch_part<kMany>(words, from, part, stream);
    if (error) return error;
    words += kMany;
    from += part;
    bytes -= part;
  }
  return nullptr;
}

}  // namespace fulgurite::cuda
