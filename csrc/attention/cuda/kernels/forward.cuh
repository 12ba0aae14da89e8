// Attention forward: bfloat16 and float16 on tensor cores, float32 without.
//
// K and V have one stage each: V of a tile is copied beside Q·Kᵀ, the next K beside softmax and P·V, so that two blocks of 64 KiB
// fit a multiprocessor. P stays in registers: an accumulator of Q·Kᵀ is an operand of P·V. Tiles that no row of the block has in
// reach, or whose layout keeps nothing, are not visited; a warp passes over those that its own rows do not keep.
//
// Reads:         query once, key and value once for each block of a query head, and what makes scores
// Writes:        out, by way of shared memory in 16-byte stores, and lse
// Task:          a block is kRows queries of one head, a warp kStrips·16 of them
// Order of sums: keys upwards by tiles, in a tile by 16 as the tensor core adds them; l lane by lane, then over four lanes
#pragma once

#include <type_traits>

#include "attention/cuda/kernels/careful.cuh"
#include "attention/cuda/kernels/fma.cuh"
#include "attention/cuda/kernels/mma.cuh"

namespace fulgurite::cuda {

/// Widths of query and key and of value, rounded up; warps of what Lanes has, keys of a tile.
template <class T_, class Lanes_, int kD_, int kDv_, int kWarps, int kKeys_>
struct ForwardTile {
  using T = T_;
  using Lanes = Lanes_;
  static constexpr int kD = kD_, kDv = kDv_, kKeys = kKeys_;
  static constexpr int kThreads = kWarps * 32, kWarpRows = Lanes::kWarpRows;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr int kTileBytes = ((kRows + kKeys) * kD + kKeys * kDv) * int{sizeof(T)};
  static constexpr int kBytes = kTileBytes + kWarps * Lanes::kScratchBytes;
};

template <class T, int kD, int kDv, int kWarps, int kStrips, int kKeys>
using MmaForward = ForwardTile<T, Mma<T, kStrips>, kD, kDv, kWarps, kKeys>;
template <int kD, int kRows, int kKeys>
using FmaForward = ForwardTile<float, Fma<kRows, kKeys>, kD, kD, 4, kKeys>;

template <class Tile, bool kPlain>
class ForwardBlock {
  using T = typename Tile::T;
  using Lanes = typename Tile::Lanes;
  using Weights = Softmax<T, Lanes, kPlain>;
  using State = typename Weights::State;
  using Scores = Pairs<Lanes, Tile::kKeys>;
  using Sums = typename Scores::Sums;
  using Outs = typename Lanes::template Sums<Tile::kDv>;
  static constexpr int kRowsOfLane = Lanes::kRowsOfLane;

 public:
  /// What a warp knows of its place.
  struct Place {
    QueryBlock block;
    TileReach reach, warp_reach;  // warp_reach: nothing where the warp has no rows
  };

  __device__ ForwardBlock(const AttentionCudaParams& p, unsigned char* shared, Place* places)
      : p_(p),
        at_(placed(p, places)),
        query_{reinterpret_cast<T*>(shared)},
        key_{query_.data + Tile::kRows * Tile::kD},
        value_{key_.data + Tile::kKeys * Tile::kD},
        scratch_(reinterpret_cast<T*>(shared + Tile::kTileBytes +
                                      warp_of_block() * Lanes::kScratchBytes)) {}

  __device__ void run() {
    const float unit = static_cast<float>(p_.scale) * kLog2E, sink = sink_of(p_, at_.block.h);
    const DropoutRule dropout = kPlain ? DropoutRule{} : dropout_of(p_);
    Outs out = {};
    State state = Weights::start(sink);

    const int end = at_.reach.end();
    int tile = visited(at_.reach.first());
    copy<Tile::kRows>(query_, p_.query, at_.block.h, p_.N, p_.D, at_.block.i0);
    if (tile < end) copy_key(tile);
    cux::cp_async_commit();
    while (tile < end) {
      cux::cp_async_wait<0>();
      __syncthreads();  // this tile's key is there, and every warp has left the last one's value
      copy_value(tile);
      cux::cp_async_commit();
      const int32_t j0 = tile * Tile::kKeys;
      TileState keeps = at_.warp_reach.state(tile);
      if (!kPlain && keeps == TileState::kFull && hides_pairs()) keeps = TileState::kPartial;
      Sums sums = {};
      if (keeps != TileState::kSkip)
        Lanes::multiply_rows(sums, query_, static_cast<unsigned>(warp_row()), key_);
      cux::cp_async_wait<0>();
      __syncthreads();  // this tile's value is there, and every warp has left its key
      tile = visited(at_.reach.next(tile));
      if (tile < end) copy_key(tile);
      cux::cp_async_commit();
      if (keeps == TileState::kSkip) continue;
      weigh_tile(sums, keeps == TileState::kPartial, j0, unit, dropout, state, out);
      Lanes::multiply_weights(out, sums, value_, scratch_);
    }
    cux::cp_async_wait<0>();
    __syncthreads();  // without a tile nobody has waited for the queries, where results go now
    if (at_.block.i0 + warp_row() < p_.N) finish(state, out);
  }

 private:
  // Where accumulators leave few registers the place lies in shared memory, else that is not worth a wavefront.
  static constexpr bool kFewRegisters = (Tile::kDv + Tile::kKeys) * Tile::kWarpRows / 32 >= 160;
  using KeptPlace = std::conditional_t<kFewRegisters, const Place&, const Place>;

  __device__ static Place place(const AttentionCudaParams& p) {
    Place at{query_block<Tile::kRows>(p, blockIdx.x), {}, {}};
    const int32_t i0 = at.block.i0, own = i0 + warp_row();
    at.reach = TileReach(p.rule, i0, i0 + rows_from(p, i0, Tile::kRows), Tile::kKeys);
    if (own < p.N)
      at.warp_reach = TileReach(p.rule, own, own + rows_from(p, own, Tile::kWarpRows), Tile::kKeys);
    return at;
  }
  __device__ static KeptPlace placed(const AttentionCudaParams& p, Place* places) {
    if constexpr (kFewRegisters) {
      if (lane_of_warp() == 0) places[warp_of_block()] = place(p);
      __syncwarp();
      return places[warp_of_block()];
    } else {
      return place(p);
    }
  }

  /// The warp's first row of the block.
  __device__ static int warp_row() { return static_cast<int>(warp_of_block()) * Tile::kWarpRows; }
  /// Of `most` rows from i0 on, those that exist.
  __device__ static int32_t rows_from(const AttentionCudaParams& p, int32_t i0, int32_t most) {
    const int32_t rest = static_cast<int32_t>(p.N) - i0;
    return rest < most ? rest : most;
  }

  template <int kRows, int kWidth>
  __device__ void copy(SharedTile<T, kWidth> to, const Tensor4& from, uint32_t h, int64_t rows,
                       int64_t width, int32_t row0) const {
    const HeadRows<T> of_head = head_rows<T>(from, at_.block.b, h, rows, width);
    copy_rows<kRows, Tile::kThreads>(to, of_head, row0, kPlain || p_.wide);
  }
  __device__ void copy_key(int tile) const {
    copy<Tile::kKeys>(key_, p_.key, at_.block.key_head, p_.M, p_.D, tile * Tile::kKeys);
  }
  __device__ void copy_value(int tile) const {
    copy<Tile::kKeys>(value_, p_.value, at_.block.key_head, p_.M, p_.Dv, tile * Tile::kKeys);
  }

  __device__ bool hides_pairs() const { return p_.rule.mask.data || p_.rule.layout.data; }

  /// The first tile from `tile` on of which the layout keeps something for the block.
  __device__ int visited(int tile) const {
    if (kPlain || !p_.rule.layout.data) return tile;
    const int lane = static_cast<int>(lane_of_warp());
    const BlockScores scores(p_.rule, at_.block.b, at_.block.h);
    for (; tile < at_.reach.end(); tile = at_.reach.next(tile)) {
      const int64_t j0 = int64_t{tile} * Tile::kKeys,
                    j1 = j0 + Tile::kKeys < p_.M ? j0 + Tile::kKeys : p_.M;
      const Seen seen = scores.layout_seen(
          at_.block.i0, at_.block.i0 + rows_from(p_, at_.block.i0, Tile::kRows), j0, j1, lane, 32);
      if (__any_sync(~0u, seen.any)) break;
    }
    return tile;
  }

  /// Products become weights of the values.
  __device__ void weigh_tile(Sums& sums, bool partial, int32_t j0, float unit,
                             const DropoutRule& dropout, State& state, Outs& out) const {
    const HeadScores scores(p_, at_.block.b, at_.block.h);
    const int32_t i0 = at_.block.i0 + warp_row();
    if (!kPlain) scores.template score<Scores>(sums, i0, j0);
    if (partial) {
      const typename Scores::Kept kept(p_.rule, scores.block, i0, static_cast<int32_t>(p_.N), j0);
      if (!kept.all()) Scores::hide(sums, kept, kHidden);
    }
    if (kPlain || p_.score == ScoreKind::kSoftmax)
      Weights::template weigh<Tile::kKeys>(sums, unit, state, out);
    else
      Scores::visit(sums, [&](float& s, int, int) {
        s = activation<KernelMath>(p_.score, p_.score_scale, s);
      });
    if (!kPlain && dropout.active)
      Scores::drop(sums, static_cast<float>(dropout.inverse_keep), [&](int row, int group) {
        return keep_bits(dropout, at_.block.b, at_.block.h, i0 + row, j0 / 4 + group);
      });
  }

  __device__ void finish(const State& state, const Outs& out) const {
    const QueryBlock block = at_.block;
    const int32_t i0 = block.i0 + warp_row();
    const bool softmax = p_.score == ScoreKind::kSoftmax;
    float factors[kRowsOfLane];
    uint32_t broken = 0;  // bit n of a lane's rows: not finite
    float* const lse = static_cast<float*>(p_.lse.data) + block.b * p_.lse.strides[0] +
                       block.h * p_.lse.strides[1];
    CUX_UNROLL
    for (int n = 0; n < kRowsOfLane; ++n) {
      const float sum = Weights::whole_sum(state.sum[n]);
      factors[n] = !softmax ? 1.f : sum == 0 ? 0.f : 1.f / sum;
      const int32_t i = i0 + Lanes::static_row(n) + Lanes::lane_row();
      if (lane_of_warp() % Lanes::kLanesOfRow == 0 && i < p_.N)
        lse[i * p_.lse.strides[2]] = softmax ? lse_of<kPlain>(state.base[n], sum) : 0.f;
      float probe = 0;
      CUX_UNROLL
      for (int k = 0; k < Tile::kDv / Lanes::kLanesOfRow; ++k)
        probe = fmaf(Lanes::at(out, n, k) * factors[n], 0.f, probe);
      broken |= static_cast<uint32_t>(probe != 0) << n;
    }
    const SharedTile<T, Tile::kDv> rows{query_.data + warp_row() * Tile::kD};
    Lanes::put_rows(rows, out, factors);
    __syncwarp();
    T* const to =
        static_cast<T*>(p_.out.data) + block.b * p_.out.strides[0] + block.h * p_.out.strides[1];
    store_rows<Tile::kWarpRows>(rows, to, p_.out.strides[2], i0, p_.N, static_cast<int32_t>(p_.Dv),
                                kPlain || p_.wide);
    if (__any_sync(~0u, broken != 0)) mend(block, broken);
  }

  /// Rows that are not finite, once more.
  __device__ void mend(const QueryBlock& block, uint32_t broken) const {
    const HeadScores scores(p_, block.b, block.h);
    const int32_t i0 = block.i0 + warp_row();
    __syncwarp();  // they have been stored
    for (int n = 0; n < kRowsOfLane; ++n) {
      const uint32_t lanes = __ballot_sync(~0u, broken >> n & 1);
      for (int lane = 0; lane < 32; lane += Lanes::kLanesOfRow) {
        // Of the lanes of a row any may have seen it; the first says which it is.
        const int row = __shfl_sync(~0u, Lanes::static_row(n) + Lanes::lane_row(), lane);
        if ((lanes >> lane & ((1u << Lanes::kLanesOfRow) - 1)) == 0 || i0 + row >= p_.N) continue;
        CarefulRow<T>(p_, scores, block.b, block.h, i0 + row).template write<Tile::kDv>();
      }
    }
  }

  const AttentionCudaParams& p_;
  KeptPlace at_;
  const SharedTile<T, Tile::kD> query_, key_;
  const SharedTile<T, Tile::kDv> value_;
  T* const scratch_;
};

template <class Tile, bool kPlain>
// Eight warps on a multiprocessor.
__global__ void __launch_bounds__(Tile::kThreads, 256 / Tile::kThreads)
    attention_forward(const __grid_constant__ AttentionCudaParams p) {
  CUX_DYN_SMEM(shared);
  using Block = ForwardBlock<Tile, kPlain>;
  CUX_SHARED(typename Block::Place, places, Tile::kThreads / 32);
  Block(p, shared, places).run();
}

template <class Tile, bool kPlain>
cux::Error launch_forward(const AttentionCudaParams& p, cux::Stream stream) {
  const int64_t blocks = (p.N + Tile::kRows - 1) / Tile::kRows * p.B * p.Hq;
  return cux::launch(attention_forward<Tile, kPlain>, dim3(static_cast<unsigned>(blocks)),
                     dim3(Tile::kThreads), Tile::kBytes, stream, p);
}

}  // namespace fulgurite::cuda
