// The tiles of the forward, by width.
#pragma once

#include "attention/cuda/forward.h"
#include "attention/cuda/kernels/forward.cuh"

namespace fulgurite::cuda {

/// Two strips of rows a warp read shared memory half as often for each product. What general scores are made from takes the
/// registers of the second.
template <class T, bool kPlain>
struct ForwardTiles {
  static constexpr int kWarps = kPlain ? 4 : 8, kStrips = kPlain ? 2 : 1;
  using D32 = MmaForward<T, 32, 32, kWarps, kStrips, 64>;
  using D64 = MmaForward<T, 64, 64, kWarps, kStrips, 64>;
  using D80 = MmaForward<T, 80, 80, kWarps, kStrips, 64>;
  using D96 = MmaForward<T, 96, 96, kWarps, kStrips, 64>;
  using D128 = MmaForward<T, 128, 128, kWarps, kStrips, 64>;
  using D192 = MmaForward<T, 192, 128, 8, 1, 64>;
  using D256 = MmaForward<T, 256, 256, 8, 1, kPlain ? 64 : 32>;
};

template <class Tile>
bool fits(const AttentionCudaParams& p) {
  return p.D <= Tile::kD && p.Dv <= Tile::kDv;
}

template <class T, bool kPlain>
cux::Error launch_narrow_forward(const AttentionCudaParams& p, cux::Stream stream) {
  using Tiles = ForwardTiles<T, kPlain>;
  if (fits<typename Tiles::D32>(p)) return launch_forward<typename Tiles::D32, kPlain>(p, stream);
  if (fits<typename Tiles::D64>(p)) return launch_forward<typename Tiles::D64, kPlain>(p, stream);
  if (fits<typename Tiles::D80>(p)) return launch_forward<typename Tiles::D80, kPlain>(p, stream);
  return launch_forward<typename Tiles::D96, kPlain>(p, stream);
}

template <class T, bool kPlain>
cux::Error launch_wide_forward(const AttentionCudaParams& p, cux::Stream stream) {
  using Tiles = ForwardTiles<T, kPlain>;
  if (fits<typename Tiles::D128>(p)) return launch_forward<typename Tiles::D128, kPlain>(p, stream);
  if (fits<typename Tiles::D192>(p)) return launch_forward<typename Tiles::D192, kPlain>(p, stream);
  return launch_forward<typename Tiles::D256, kPlain>(p, stream);
}

}  // namespace fulgurite::cuda
