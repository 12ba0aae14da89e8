// Attention backward, the gradient of a bias: Σ dS over what the bias broadcasts along.
//
// Reads:         for each tile that is summed query, grad_out, key, value, base, fine and delta
// Writes:        grad_bias, whole, in the bias's type
// Task:          a block is a tile of the bias; along dimensions of one element it goes through all tiles
// Order of sums: over batch entries, heads, queries and keys by tiles; then over rows, then columns of a tile upwards
#pragma once

#include "attention/cuda/kernels/backward.cuh"

namespace fulgurite::cuda {

template <class Tile>
class BiasGradient {
  using T = typename Tile::T;
  using Lanes = typename Tile::Lanes;
  using Scores = Pairs<Lanes, Tile::kOthers>;
  using Sums = typename Scores::Sums;
  static constexpr int kKeys = Tile::kOthers;
  static_assert(Tile::kRows * kKeys * 4 <= Tile::kTileBytes);

 public:
  __device__ BiasGradient(const AttentionCudaBackward& p, unsigned char* bytes)
      : p_(p), shared_(bytes), sums_(reinterpret_cast<float*>(bytes)), dropout_(dropout_of(p)) {
    const auto all_rows = static_cast<uint32_t>(p.N + Tile::kRows - 1) / Tile::kRows,
               all_columns = static_cast<uint32_t>(p.M + kKeys - 1) / kKeys;
    const uint32_t rows = p.bias_shape[2] == 1 ? 1 : all_rows,
                   columns = p.bias_shape[3] == 1 ? 1 : all_columns;
    uint32_t at = blockIdx.x;
    column_ = at % columns;
    row_ = at / columns % rows;
    head_ = at / columns / rows % static_cast<uint32_t>(p.bias_shape[1]);
    batch_ = at / columns / rows / static_cast<uint32_t>(p.bias_shape[1]);
    row_end_ = rows == 1 ? all_rows : row_ + 1;
    column_end_ = columns == 1 ? all_columns : column_ + 1;
    head_end_ = p.bias_shape[1] == 1 ? static_cast<uint32_t>(p.Hq) : head_ + 1;
  }

  __device__ void run() const {
    Sums total = {};
    for (uint32_t b = batch_; b < p_.B; b += static_cast<uint32_t>(p_.bias_shape[0]))
      for (uint32_t h = head_; h < head_end_; ++h)
        for (uint32_t row = row_; row < row_end_; ++row)
          for (uint32_t column = column_; column < column_end_; ++column)
            add_tile(total, b, h, static_cast<int32_t>(row) * Tile::kRows,
                     static_cast<int32_t>(column) * kKeys);
    __syncthreads();  // sums lie where the last tile was read
    Scores::visit(total, [&](float& x, int row, int column) {
      sums_[(static_cast<int>(warp_of_block()) * Tile::kWarpRows + row) * kKeys + column] = x;
    });
    __syncthreads();
    write();
  }

 private:
  __device__ void add_tile(Sums& total, uint32_t b, uint32_t h, int32_t i0, int32_t j0) const {
    const int64_t last = i0 + Tile::kRows < p_.N ? i0 + Tile::kRows : p_.N;
    if (TileReach(p_.rule, i0, last, kKeys).state(j0 / kKeys) == TileState::kSkip) return;
    __syncthreads();  // every warp has left the last tile
    copy<Tile::kRows>(shared_.own(), p_.query, b, h, p_.N, p_.D, i0);
    copy<Tile::kRows>(shared_.own_values(), p_.grad_out, b, h, p_.grad_out.data ? p_.N : 0, p_.Dv,
                      i0);
    const uint32_t key_head = h / static_cast<uint32_t>(p_.group);
    copy<kKeys>(shared_.others(0), p_.key, b, key_head, p_.M, p_.D, j0);
    copy<kKeys>(shared_.other_values(0), p_.value, b, key_head, p_.M, p_.Dv, j0);
    cux::cp_async_commit();
    cux::cp_async_wait<0>();
    __syncthreads();
    const unsigned row0 = warp_of_block() * Tile::kWarpRows;
    const int32_t own = i0 + static_cast<int32_t>(row0);
    if (own >= p_.N) return;
    Sums sums = {}, grads = {};
    Lanes::multiply_rows(sums, shared_.own(), row0, shared_.others(0));
    Lanes::multiply_rows(grads, shared_.own_values(), row0, shared_.other_values(0));
    const PairGradients<Tile, Scores, false> pairs(p_, b, h, Through::kScores);
    pairs.make(sums, grads, true, own, j0, dropout_, [&](int n) {
      const int32_t i = own + Lanes::static_row(n) + Lanes::lane_row();
      const int64_t row = (b * p_.Hq + h) * p_.N + i;
      return i < p_.N ? QueryStatistics{p_.base[row], p_.fine[row], p_.delta[row]}
                      : QueryStatistics{INFINITY, 0.f, 0.f};
    });
    CUX_UNROLL
    for (int n = 0; n < Lanes::kRowsOfLane; ++n) {
      CUX_UNROLL
      for (int k = 0; k < Scores::kOfLane; ++k) Lanes::at(total, n, k) += Lanes::at(grads, n, k);
    }
  }

  template <int kRows, int kWidth>
  __device__ void copy(SharedTile<T, kWidth> to, const Tensor4& from, uint32_t b, uint32_t h,
                       int64_t rows, int64_t width, int32_t row0) const {
    copy_rows<kRows, Tile::kThreads>(to, head_rows<T>(from, b, h, rows, width), row0, p_.wide);
  }

  __device__ void write() const {
    const bool one_row = p_.bias_shape[2] == 1, one_column = p_.bias_shape[3] == 1;
    const int rows = one_row ? 1 : Tile::kRows, columns = one_column ? 1 : kKeys;
    const int64_t i0 = int64_t{row_} * Tile::kRows, j0 = int64_t{column_} * kKeys;
    for (int at = static_cast<int>(threadIdx.x); at < rows * columns; at += Tile::kThreads) {
      const int row = at / columns, column = at % columns;
      if (i0 + row >= p_.N || j0 + column >= p_.M) continue;
      float sum = 0;
      for (int r = row; r < (one_row ? Tile::kRows : row + 1); ++r)
        for (int c = column; c < (one_column ? kKeys : column + 1); ++c)
          sum += sums_[r * kKeys + c];
      const int64_t to =
          ((batch_ * p_.bias_shape[1] + head_) * p_.bias_shape[2] + i0 + row) * p_.bias_shape[3] +
          j0 + column;
      if (p_.rule.bias_dtype == Dtype::kFloat32)
        static_cast<float*>(p_.grad_bias)[to] = sum;
      else
        store_number(static_cast<T*>(p_.grad_bias) + to, sum);
    }
  }

  const AttentionCudaBackward& p_;
  const typename Tile::Shared shared_;
  float* const sums_;
  const DropoutRule dropout_;
  uint32_t batch_, head_, head_end_, row_, row_end_, column_, column_end_;
};

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 256 / Tile::kThreads)
    attention_backward_bias(const __grid_constant__ AttentionCudaBackward p) {
  CUX_DYN_SMEM(shared);
  BiasGradient<Tile>(p, shared).run();
}

template <class Tile>
cux::Error launch_backward_bias(const AttentionCudaBackward& p, cux::Stream stream) {
  const int64_t rows = p.bias_shape[2] == 1 ? 1 : (p.N + Tile::kRows - 1) / Tile::kRows,
                columns = p.bias_shape[3] == 1 ? 1 : (p.M + Tile::kOthers - 1) / Tile::kOthers;
  const int64_t blocks = p.bias_shape[0] * p.bias_shape[1] * rows * columns;
  return cux::launch(attention_backward_bias<Tile>, dim3(static_cast<unsigned>(blocks)),
                     dim3(Tile::kThreads), Tile::kBytes, stream, p);
}

}  // namespace fulgurite::cuda
