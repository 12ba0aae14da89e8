// Attention backward, dQ: dQ = scale·dS·K.
//
// dS is made in the accumulators of dO·Vᵀ and is an operand of the next product where it lies. K and V of the next tile are copied
// beside the products of this one.
//
// Reads:         query and grad_out once, key and value once for each block of a query head; base and delta
// Writes:        grad_query
// Task:          a block is kRows queries of one head, a warp kWarpRows of them
// Order of sums: keys upwards by tiles, in a tile by 16 as the tensor core adds them
#pragma once

#include "attention/cuda/kernels/careful_backward.cuh"

namespace fulgurite::cuda {

template <class Tile, bool kPlain>
class QueryGradient {
  using T = typename Tile::T;
  using Lanes = typename Tile::Lanes;
  using Scores = Pairs<Lanes, Tile::kOthers>;
  using Sums = typename Scores::Sums;
  static constexpr int kRowsOfLane = Lanes::kRowsOfLane;

 public:
  __device__ QueryGradient(const AttentionCudaBackward& p, unsigned char* shared)
      : p_(p),
        at_(query_block<Tile::kRows>(p, blockIdx.x)),
        i0_(at_.i0 + static_cast<int>(warp_of_block()) * Tile::kWarpRows),
        shared_(shared) {}

  __device__ void run() const {
    const TileReach reach(p_.rule, at_.i0, last_row(at_.i0, Tile::kRows), Tile::kOthers);
    const TileReach warp_reach =
        i0_ < p_.N ? TileReach(p_.rule, i0_, last_row(i0_, Tile::kWarpRows), Tile::kOthers)
                   : TileReach{};
    const DropoutRule dropout = kPlain ? DropoutRule{} : dropout_of(p_);
    QueryStatistics statistics[kRowsOfLane];
    read_statistics(statistics);
    typename Lanes::template Sums<Tile::kD> out = {};
    const PairGradients<Tile, Scores, kPlain> pairs(p_, at_.b, at_.h);

    int tile = reach.first(), stage = 0;
    const int end = reach.end();
    copy_own();
    if (tile < end) copy_keys(tile, stage);
    cux::cp_async_commit();
    for (; tile < end; stage ^= 1) {
      cux::cp_async_wait<0>();
      __syncthreads();  // this tile is there, and every warp has left the other stage
      const int j0 = tile * Tile::kOthers;
      const TileState keeps = warp_reach.state(tile);
      tile = reach.next(tile);
      if (tile < end) copy_keys(tile, stage ^ 1);
      cux::cp_async_commit();
      if (keeps == TileState::kSkip) continue;
      const bool partial =
          keeps == TileState::kPartial || (!kPlain && (p_.rule.mask.data || p_.rule.layout.data));
      Sums sums = {}, grads = {};
      const unsigned row0 = warp_of_block() * Tile::kWarpRows;
      Lanes::multiply_rows(sums, shared_.own(), row0, shared_.others(stage));
      Lanes::multiply_rows(grads, shared_.own_values(), row0, shared_.other_values(stage));
      pairs.make(sums, grads, partial, i0_, j0, dropout, [&](int n) { return statistics[n]; });
      Lanes::multiply_weights(out, grads, shared_.others(stage), shared_.scratch());
    }
    cux::cp_async_wait<0>();
    __syncthreads();  // without a tile nobody has waited for the queries, where results go now
    if (i0_ < p_.N) finish(out);
  }

 private:
  __device__ int32_t last_row(int32_t i0, int32_t most) const {
    return i0 + most < p_.N ? i0 + most : static_cast<int32_t>(p_.N);
  }
  __device__ void read_statistics(QueryStatistics (&of)[kRowsOfLane]) const {
    const int64_t row0 = (at_.b * p_.Hq + at_.h) * p_.N;
    CUX_UNROLL
    for (int n = 0; n < kRowsOfLane; ++n) {
      const int32_t i = i0_ + Lanes::static_row(n) + Lanes::lane_row();
      const bool exists = i < p_.N;
      of[n].base = exists ? p_.base[row0 + i] : INFINITY;
      of[n].fine = !kPlain && exists ? p_.fine[row0 + i] : 0.f;
      of[n].delta = exists ? p_.delta[row0 + i] : 0.f;
    }
  }

  __device__ void copy_own() const {
    copy_rows<Tile::kRows, Tile::kThreads>(
        shared_.own(), head_rows<T>(p_.query, at_.b, at_.h, p_.N, p_.D), at_.i0, kPlain || p_.wide);
    copy_rows<Tile::kRows, Tile::kThreads>(
        shared_.own_values(),
        head_rows<T>(p_.grad_out, at_.b, at_.h, p_.grad_out.data ? p_.N : 0, p_.Dv), at_.i0,
        kPlain || p_.wide);
  }
  __device__ void copy_keys(int tile, int stage) const {
    const int64_t j0 = int64_t{tile} * Tile::kOthers;
    copy_rows<Tile::kOthers, Tile::kThreads>(shared_.others(stage),
                                             head_rows<T>(p_.key, at_.b, at_.key_head, p_.M, p_.D),
                                             j0, kPlain || p_.wide);
    copy_rows<Tile::kOthers, Tile::kThreads>(
        shared_.other_values(stage), head_rows<T>(p_.value, at_.b, at_.key_head, p_.M, p_.Dv), j0,
        kPlain || p_.wide);
  }

  __device__ void finish(const typename Lanes::template Sums<Tile::kD>& out) const {
    float factors[kRowsOfLane];
    CUX_UNROLL
    for (int n = 0; n < kRowsOfLane; ++n) factors[n] = static_cast<float>(p_.scale);
    const auto rows = shared_.own().from_row(warp_of_block() * Tile::kWarpRows);
    Lanes::put_rows(rows, out, factors);
    __syncwarp();
    T* const to = static_cast<T*>(p_.grad_query.data) + at_.b * p_.grad_query.strides[0] +
                  at_.h * p_.grad_query.strides[1];
    store_rows<Tile::kWarpRows>(rows, to, p_.grad_query.strides[2], i0_, p_.N,
                                static_cast<int32_t>(p_.D), kPlain || p_.wide);
    mend_rows<Lanes>(broken_rows<Lanes>(out, factors), [&](int row) {
      if (i0_ + row < p_.N) careful_query_row<T, kPlain, Tile::kD>(p_, at_.b, at_.h, i0_ + row);
    });
  }

  const AttentionCudaBackward& p_;
  const QueryBlock at_;
  const int32_t i0_;  // the warp's first row
  const typename Tile::Shared shared_;
};

// Eight warps on a multiprocessor.
template <class Tile, bool kPlain>
__global__ void __launch_bounds__(Tile::kThreads, 256 / Tile::kThreads)
    attention_backward_query(const __grid_constant__ AttentionCudaBackward p) {
  CUX_DYN_SMEM(shared);
  QueryGradient<Tile, kPlain>(p, shared).run();
}

template <class Tile, bool kPlain>
cux::Error launch_backward_query(const AttentionCudaBackward& p, cux::Stream stream) {
  const int64_t blocks = (p.N + Tile::kRows - 1) / Tile::kRows * p.B * p.Hq;
  return cux::launch(attention_backward_query<Tile, kPlain>, dim3(static_cast<unsigned>(blocks)),
                     dim3(Tile::kThreads), Tile::kBytes, stream, p);
}

}  // namespace fulgurite::cuda
