// Which instance of the forward a call takes.
#include "attention/cuda/forward.h"
#include "attention/cuda/kernels/shared_tile.cuh"

namespace fulgurite::cuda {
namespace {

/// Products times the scale are the scores, by position alone a pair is kept, and rows can be read by 16 bytes.
bool is_plain(const AttentionCudaParams& p) {
  return p.plain_scores && p.wide && p.dropout_p == 0 && !p.rule.mask.data && !p.rule.layout.data;
}

template <class T, bool kPlain>
cux::Error launch_of_width(const AttentionCudaParams& p, cux::Stream stream) {
  return p.D <= 96 && p.Dv <= 96 ? launch_narrow_forward<T, kPlain>(p, stream)
                                 : launch_wide_forward<T, kPlain>(p, stream);
}

template <class T>
cux::Error launch(const AttentionCudaParams& p, cux::Stream stream) {
  return is_plain(p) ? launch_of_width<T, true>(p, stream) : launch_of_width<T, false>(p, stream);
}

}  // namespace

cux::Error attention_forward(AttentionCudaParams p, cux::Stream stream) {
  p.wide = has_wide_rows(p);
  if (p.dtype == Dtype::kBFloat16) return launch<BFloat16>(p, stream);
  if (p.dtype == Dtype::kFloat16) return launch<Half>(p, stream);
  return launch_float32_forward(p, stream);
}

}  // namespace fulgurite::cuda
