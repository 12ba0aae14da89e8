// Attention backward, dK and dV: dV = Pᵀ·dO, dK = scale·dSᵀ·Q.
//
// A warp's rows are keys: Sᵀ = K·Qᵀ and dPᵀ = V·dOᵀ are accumulators, and Pᵀ and dSᵀ operands of the next products where they
// lie. Queries and dO of the next tile are copied beside the products of this one.
//
// Reads:         key and value once, query and grad_out once for each block of keys; base and delta
// Writes:        grad_key and grad_value
// Task:          a block is kRows keys of one key/value head, a warp kWarpRows of them
// Order of sums: over the heads of the group, then queries upwards by tiles, in a tile by 16 as the tensor core adds them
#pragma once

#include "attention/cuda/kernels/careful_backward.cuh"

namespace fulgurite::cuda {

/// Which gradients a launch makes: of the widest, accumulators of both do not fit the registers.
enum class KeyResults { kBoth, kKey, kValue };

template <class Tile, bool kPlain, KeyResults kResults>
class KeyGradients {
  using T = typename Tile::T;
  using Lanes = typename Tile::Lanes;
  using Scores = KeyPairs<Lanes, Tile::kOthers>;
  using Sums = typename Scores::Sums;
  static constexpr int kRowsOfLane = Lanes::kRowsOfLane;
  static constexpr bool kKey = kResults != KeyResults::kValue,
                        kValue = kResults != KeyResults::kKey;

 public:
  __device__ KeyGradients(const AttentionCudaBackward& p, unsigned char* shared, float* statistics)
      : p_(p), shared_(shared), statistics_(statistics) {
    const auto heads = static_cast<uint32_t>(p.Hkv), all_heads = static_cast<uint32_t>(p.B) * heads;
    const uint32_t head = blockIdx.x % all_heads;  // keys that most queries see come first
    b_ = head / heads;
    key_head_ = head % heads;
    k0_ = static_cast<int32_t>(blockIdx.x / all_heads) * Tile::kRows;
  }

  __device__ void run() const {
    const int32_t j0 = k0_ + static_cast<int>(warp_of_block()) * Tile::kWarpRows;
    const QueryReach reach(p_.rule, p_.N, k0_, last_key(k0_, Tile::kRows), Tile::kOthers);
    const QueryReach warp_reach =
        j0 < p_.M ? QueryReach(p_.rule, p_.N, j0, last_key(j0, Tile::kWarpRows), Tile::kOthers)
                  : QueryReach{};
    const DropoutRule dropout = kPlain ? DropoutRule{} : dropout_of(p_);
    typename Lanes::template Sums<Tile::kD> grad_key = {};
    typename Lanes::template Sums<Tile::kDv> grad_value = {};

    const TileRange tiles = reach.tiles();
    const auto group = static_cast<uint32_t>(p_.group);
    uint32_t head = 0;
    int tile = tiles.begin, stage = 0;
    bool more = tiles.begin < tiles.end;
    copy_own();
    if (more) copy_queries(head, tile, stage);
    cux::cp_async_commit();
    for (; more; stage ^= 1) {
      cux::cp_async_wait<0>();
      __syncthreads();  // this tile is there, and every warp has left the other stage
      const uint32_t h = key_head_ * group + head;
      const int32_t i0 = tile * Tile::kOthers;
      const TileState keeps = warp_reach.state(tile);
      if (++tile == tiles.end) {
        tile = tiles.begin;
        ++head;
      }
      more = head < group;
      if (more) copy_queries(head, tile, stage ^ 1);
      cux::cp_async_commit();
      if (keeps == TileState::kSkip) continue;
      const bool partial =
          keeps == TileState::kPartial || (!kPlain && (p_.rule.mask.data || p_.rule.layout.data));
      Sums sums = {}, grads = {};
      const unsigned row0 = warp_of_block() * Tile::kWarpRows;
      Lanes::multiply_rows(sums, shared_.own(), row0, shared_.others(stage));
      Lanes::multiply_rows(grads, shared_.own_values(), row0, shared_.other_values(stage));
      const float* const of_stage = statistics_ + stage * 3 * Tile::kOthers;
      const PairGradients<Tile, Scores, kPlain> pairs(p_, b_, h);
      pairs.make(sums, grads, partial, i0, j0, dropout, [&](int k) {
        const float* const of = of_stage + Lanes::static_column(k) + Lanes::lane_column();
        return QueryStatistics{of[0], kPlain ? 0.f : of[2 * Tile::kOthers], of[Tile::kOthers]};
      });
      if constexpr (kValue)
        Lanes::multiply_weights(grad_value, sums, shared_.other_values(stage), shared_.scratch());
      if constexpr (kKey)
        Lanes::multiply_weights(grad_key, grads, shared_.others(stage), shared_.scratch());
    }
    cux::cp_async_wait<0>();
    __syncthreads();  // without a tile nobody has waited for the keys, where results go now
    if (j0 >= p_.M) return;
    uint32_t broken = 0;
    if (kKey && p_.grad_key.data)
      broken |= store(shared_.own(), grad_key, static_cast<float>(p_.scale), p_.grad_key, j0, p_.D);
    if (kValue && p_.grad_value.data)
      broken |= store(shared_.own_values(), grad_value, 1.f, p_.grad_value, j0, p_.Dv);
    mend_rows<Lanes>(broken, [&](int row) {
      if (j0 + row < p_.M)
        careful_key_row<T, kPlain, kKey ? Tile::kD : 0, kValue ? Tile::kDv : 0>(p_, b_, key_head_,
                                                                                j0 + row);
    });
  }

 private:
  __device__ int32_t last_key(int32_t j0, int32_t most) const {
    return j0 + most < p_.M ? j0 + most : static_cast<int32_t>(p_.M);
  }

  __device__ void copy_own() const {
    copy_rows<Tile::kRows, Tile::kThreads>(
        shared_.own(), head_rows<T>(p_.key, b_, key_head_, p_.M, p_.D), k0_, kPlain || p_.wide);
    copy_rows<Tile::kRows, Tile::kThreads>(shared_.own_values(),
                                           head_rows<T>(p_.value, b_, key_head_, p_.M, p_.Dv), k0_,
                                           kPlain || p_.wide);
  }
  /// Of a head of the group, with bases and δ.
  __device__ void copy_queries(uint32_t head, int tile, int stage) const {
    const uint32_t h = key_head_ * static_cast<uint32_t>(p_.group) + head;
    const int32_t i0 = tile * Tile::kOthers;
    copy_rows<Tile::kOthers, Tile::kThreads>(
        shared_.others(stage), head_rows<T>(p_.query, b_, h, p_.N, p_.D), i0, kPlain || p_.wide);
    copy_rows<Tile::kOthers, Tile::kThreads>(
        shared_.other_values(stage),
        head_rows<T>(p_.grad_out, b_, h, p_.grad_out.data ? p_.N : 0, p_.Dv), i0,
        kPlain || p_.wide);
    const int thread = static_cast<int>(threadIdx.x);
    if (thread >= Tile::kOthers) return;
    const int64_t row = (b_ * p_.Hq + h) * p_.N + i0 + thread;
    const bool exists = i0 + thread < p_.N;
    float* const to = statistics_ + stage * 3 * Tile::kOthers + thread;
    to[0] = exists ? p_.base[row] : INFINITY;
    to[Tile::kOthers] = exists ? p_.delta[row] : 0.f;
    if (!kPlain) to[2 * Tile::kOthers] = exists ? p_.fine[row] : 0.f;
  }

  /// Returns the rows that are not finite.
  template <int kWidth, class Grads>
  __device__ uint32_t store(SharedTile<T, kWidth> tile, const Grads& grads, float factor,
                            const Output4& to, int32_t j0, int64_t width) const {
    float factors[kRowsOfLane];
    CUX_UNROLL
    for (int n = 0; n < kRowsOfLane; ++n) factors[n] = factor;
    const auto rows = tile.from_row(warp_of_block() * Tile::kWarpRows);
    Lanes::put_rows(rows, grads, factors);
    __syncwarp();
    T* const head = static_cast<T*>(to.data) + b_ * to.strides[0] + key_head_ * to.strides[1];
    store_rows<Tile::kWarpRows>(rows, head, to.strides[2], j0, p_.M, static_cast<int32_t>(width),
                                kPlain || p_.wide);
    return broken_rows<Lanes>(grads, factors);
  }

  const AttentionCudaBackward& p_;
  uint32_t b_, key_head_;
  int32_t k0_;  // the block's first key
  const typename Tile::Shared shared_;
  float* const statistics_;  // of two stages: bases, δ and, of general scores, `fine`
};

// Eight warps on a multiprocessor.
template <class Tile, bool kPlain, KeyResults kResults>
__global__ void __launch_bounds__(Tile::kThreads, 256 / Tile::kThreads)
    attention_backward_key(const __grid_constant__ AttentionCudaBackward p) {
  CUX_DYN_SMEM(shared);
  CUX_SHARED(float, statistics, 6 * Tile::kOthers);
  KeyGradients<Tile, kPlain, kResults>(p, shared, statistics).run();
}

template <class Tile, bool kPlain, KeyResults kResults = KeyResults::kBoth>
cux::Error launch_backward_key(const AttentionCudaBackward& p, cux::Stream stream) {
  const int64_t blocks = (p.M + Tile::kRows - 1) / Tile::kRows * p.B * p.Hkv;
  return cux::launch(attention_backward_key<Tile, kPlain, kResults>,
                     dim3(static_cast<unsigned>(blocks)), dim3(Tile::kThreads), Tile::kBytes,
                     stream, p);
}

}  // namespace fulgurite::cuda
