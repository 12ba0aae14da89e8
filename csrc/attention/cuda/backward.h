// Attention backward on a card, for who has a problem and a stream.
#pragma once

#include "attention/cuda/forward.h"

namespace fulgurite::cuda {

/// Floats of workspace: p.base, p.fine and p.delta are its thirds.
inline int64_t backward_workspace(const AttentionCudaBackward& p) { return 3 * p.B * p.Hq * p.N; }

/// The gradients that p has places for; N, M, B and Hq are not 0, and forward_limit() is null. `wide` is set here.
cux::Error attention_backward(AttentionCudaBackward p, cux::Stream stream);

// Of one type, compiled by instances/: widths up to 96, and above.
template <class T, bool kPlain>
cux::Error launch_narrow_backward(const AttentionCudaBackward& p, cux::Stream stream);
template <class T, bool kPlain>
cux::Error launch_wide_backward(const AttentionCudaBackward& p, cux::Stream stream);
cux::Error launch_float32_backward(const AttentionCudaBackward& p, cux::Stream stream);

}  // namespace fulgurite::cuda
