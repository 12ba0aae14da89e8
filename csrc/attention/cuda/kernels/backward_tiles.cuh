// The tiles of the backward, by width.
#pragma once

#include "attention/cuda/backward.h"
#include "attention/cuda/kernels/backward_bias.cuh"
#include "attention/cuda/kernels/backward_key.cuh"
#include "attention/cuda/kernels/backward_query.cuh"
#include "attention/cuda/kernels/delta.cuh"

namespace fulgurite::cuda {

/// Of dQ's kernel and of dK's and dV's. Where accumulators leave the registers, two strips of rows a warp read shared memory half as
/// often for each product.
template <class T, bool kPlain, int kD, int kDv = kD>
struct BackwardTiles {
  static constexpr int kStrips = kPlain && kD <= 64 ? 2 : 1, kWarps = 8 / kStrips;
  static constexpr int kKeys = kD > 192 ? 16 : kPlain && kD <= 128 ? 64 : 32;
  static constexpr int kQueries = kD > 192 || (!kPlain && kD >= 128) ? 16 : 32;
  using Query = MmaBackward<T, kD, kDv, kWarps, kStrips, kKeys>;
  using Key = MmaBackward<T, kD, kDv, kWarps, kStrips, kQueries>;
};

template <class Tile>
bool fits(const AttentionCudaBackward& p) {
  return p.D <= Tile::kD && p.Dv <= Tile::kDv;
}

/// kApart: dK and dV by a launch each.
template <class Query, class Key, bool kPlain, bool kApart>
cux::Error launch_gradients(const AttentionCudaBackward& p, cux::Stream stream) {
  cux::Error error =
      launch_delta<typename Query::T, kInPowers<typename Query::T, kPlain>>(p, stream);
  if (!error && p.grad_query.data) error = launch_backward_query<Query, kPlain>(p, stream);
  if constexpr (kApart) {
    if (!error && p.grad_key.data)
      error = launch_backward_key<Key, kPlain, KeyResults::kKey>(p, stream);
    if (!error && p.grad_value.data)
      error = launch_backward_key<Key, kPlain, KeyResults::kValue>(p, stream);
  } else {
    if (!error && (p.grad_key.data || p.grad_value.data))
      error = launch_backward_key<Key, kPlain, KeyResults::kBoth>(p, stream);
  }
  if (!error && p.grad_sink)
    error = launch_grad_sink<kInPowers<typename Query::T, kPlain>>(p, stream);
  if constexpr (!kPlain)
    if (!error && p.grad_bias) error = launch_backward_bias<Query>(p, stream);
  return error;
}

template <class Tiles, bool kPlain, bool kApart = false>
cux::Error launch_tiles(const AttentionCudaBackward& p, cux::Stream stream) {
  return launch_gradients<typename Tiles::Query, typename Tiles::Key, kPlain, kApart>(p, stream);
}

template <class T, bool kPlain>
cux::Error launch_narrow_backward(const AttentionCudaBackward& p, cux::Stream stream) {
  using D64 = BackwardTiles<T, kPlain, 64>;
  using D80 = BackwardTiles<T, kPlain, 80>;
  using D96 = BackwardTiles<T, kPlain, 96>;
  if (fits<typename D64::Query>(p)) return launch_tiles<D64, kPlain>(p, stream);
  if (fits<typename D80::Query>(p)) return launch_tiles<D80, kPlain>(p, stream);
  return launch_tiles<D96, kPlain>(p, stream);
}

template <class T, bool kPlain>
cux::Error launch_wide_backward(const AttentionCudaBackward& p, cux::Stream stream) {
  using D128 = BackwardTiles<T, kPlain, 128>;
  using D192 = BackwardTiles<T, kPlain, 192, 128>;
  using D256 = BackwardTiles<T, kPlain, 256>;
  if (fits<typename D128::Query>(p)) return launch_tiles<D128, kPlain>(p, stream);
  if (fits<typename D192::Query>(p)) return launch_tiles<D192, kPlain>(p, stream);
  return launch_tiles<D256, kPlain, true>(p, stream);
}

}  // namespace fulgurite::cuda
