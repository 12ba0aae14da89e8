// AdamW with 8-bit states: the second launch of a step, adamw_count being the first (adamw.cuh). A block's moments are read as
// map[code]·scale, updated in float32, and written as the largest magnitude of the block and the nearest codes. The update
// itself uses the moments before they are rounded to codes.
//
// Reads:         gradients, parameters or masters, codes and scales of the moments; the two maps into shared memory
// Writes:        the same but gradients and maps
// Task:          a warp is eight units of 256 elements, each a block that has scales of its own
// Order of sums: none; a block's scale is a maximum
#pragma once

#include "optim/cuda/kernels/values.cuh"

namespace fulgurite::cuda {

constexpr int kBlocksPerWarp = 8;

/// max|x| of a warp's elements; NaN if one is.
class Largest {
 public:
  __device__ void add(float x) {
    const float size = fabsf(x);
    nan_ = nan_ || size != size;
    most_ = size > most_ ? size : most_;
  }
  __device__ float of_warp() const {
    float most = most_;
    CUX_UNROLL
    for (int by = 16; by > 0; by /= 2) {
      const float other = __shfl_xor_sync(~0u, most, by);
      most = other > most ? other : most;
    }
    return __any_sync(~0u, nan_) ? NAN : most;
  }

 private:
  float most_ = 0;
  bool nan_ = false;
};

/// A block's two scales. Each is written by one lane, once all lanes have read it.
struct Scales {
  float *m, *v;
  __device__ Scales(const BlockScales& all, int64_t block)
      : m(all.exp_avg + block * all.exp_avg_stride),
        v(all.exp_avg_sq + block * all.exp_avg_sq_stride) {}
  __device__ void write(float new_m, float new_v) const {
    __syncwarp();
    if (lane_of_thread() != 0) return;
    *m = new_m;
    *v = new_v;
  }
};

/// Nearest codes of numbers, a word each.
template <bool kSigned, int n>
__device__ void quantize(const DynamicMap& map, float scale, Lane<n>& x) {
  const bool has = has_codes(scale);
  CUX_UNROLL
  for (int i = 0; i < n; ++i)
    x.word[i] = static_cast<uint32_t>(
        has ? nearest_code<kSigned, cux::ExactMath>(map, scale, number(x, i)) : map.zero);
}
template <class Unit, int n>
__device__ void dequantize(const Unit& unit, const DynamicMap& map, float scale, Lane<n>& x) {
  unit.template unpack<1>(x);
  CUX_UNROLL
  for (int i = 0; i < n; ++i) x.word[i] = same_bits<uint32_t>(map.values[x.word[i]] * scale);
}

/// A unit's moments, and the rest of its step.
template <class Unit>
struct Moments {
  Lane<Unit::kPerLane> m, v;

  /// Writes the parameter; m and v become the new numbers.
  __device__ void step(const AdamwUpdateProblem& p, const DynamicMap* maps, const Scales& scales,
                       int64_t t, Operands<Unit>& o) {
    const StepNumbers<float> s = p.numbers[t];
    Value<Unit> value(p.table.entries[t]);
    Lane<Unit::kPerLane> grad;
    o.for_pieces([&] {
      value.load(o);
      o.load(kGrad, grad);
      o.template load<1>(kExpAvg, m);
      o.template load<1>(kExpAvgSq, v);
    });
    dequantize(o.unit(), maps[0], *scales.m, m);
    dequantize(o.unit(), maps[1], *scales.v, v);
    Lane<Unit::kPerLane>& x = value.numbers(o);
    o.widen(kGrad, grad);
    CUX_UNROLL
    for (int i = 0; i < Unit::kPerLane; ++i) {
      const StepElement<float> r =
          step_element<cux::ExactMath>(s, s.weight_decay != 0, false, number(x, i), number(grad, i),
                                       number(m, i), number(v, i), 0.f);
      x.word[i] = same_bits<uint32_t>(r.p);
      m.word[i] = same_bits<uint32_t>(r.m);
      v.word[i] = same_bits<uint32_t>(r.v);
    }
    const RoundingSeed seed = seed_of(p);
    o.for_pieces([&] { value.write(o, seed); });
  }

  __device__ void write_codes(const DynamicMap* maps, float m_scale, float v_scale,
                              Operands<Unit>& o) {
    quantize<true>(maps[0], m_scale, m);
    quantize<false>(maps[1], v_scale, v);
    o.for_pieces([&] {
      o.template write_bits<1>(kExpAvg, m);
      o.template write_bits<1>(kExpAvgSq, v);
    });
  }
};

__device__ inline void update_wide(const AdamwUpdateProblem& p, const DynamicMap* maps, int64_t t,
                                   int64_t block) {
  const Scales scales(p.table.entries[t].scales, block);
  Operands<Wide> o(p.table, t, block * kBlock, lane_of_thread());
  Moments<Wide> moments;
  moments.step(p, maps, scales, t, o);
  Largest m_most, v_most;
  CUX_UNROLL
  for (int i = 0; i < Wide::kPerLane; ++i) {
    m_most.add(number(moments.m, i));
    v_most.add(number(moments.v, i));
  }
  const float m_scale = m_most.of_warp(), v_scale = v_most.of_warp();
  scales.write(m_scale, v_scale);
  moments.write_codes(maps, m_scale, v_scale, o);
}

/// An element a lane at a time, the new moments waiting for their scale in `kept`, of this warp.
__device__ inline void update_narrow(const AdamwUpdateProblem& p, const DynamicMap* maps,
                                     Moments<Narrow<1>>* kept, int64_t t, int64_t block) {
  using Unit = Narrow<1>;
  const Scales scales(p.table.entries[t].scales, block);
  const int lane = lane_of_thread();
  Largest m_most, v_most;
  CUX_NO_UNROLL
  for (int i = 0; i < kBlock; i += Unit::kElements) {
    Operands<Unit> o(p.table, t, block * kBlock + i, lane);
    Moments<Unit> moments;
    moments.step(p, maps, scales, t, o);
    if (o.unit().has(0)) {
      m_most.add(number(moments.m, 0));
      v_most.add(number(moments.v, 0));
    }
    kept[i + lane] = moments;
  }
  const float m_scale = m_most.of_warp(), v_scale = v_most.of_warp();
  scales.write(m_scale, v_scale);
  CUX_NO_UNROLL
  for (int i = 0; i < kBlock; i += Unit::kElements) {
    Operands<Unit> o(p.table, t, block * kBlock + i, lane);
    Moments<Unit> moments = kept[i + lane];
    moments.write_codes(maps, m_scale, v_scale, o);
  }
}

static __global__ void __launch_bounds__(kThreads, 2) adamw_8bit_update(AdamwUpdateProblem p) {
  if (is_skipped(p.found_inf)) return;
  CUX_SHARED(DynamicMap, maps, 2);
  CUX_SHARED(Moments<Narrow<1>>, kept, kWarps * kBlock);
  constexpr int kWords = sizeof(maps) / 16;
  const auto* const from = reinterpret_cast<const unsigned char*>(p.table.maps);
  for (int i = static_cast<int>(threadIdx.x); i < kWords; i += kThreads)
    reinterpret_cast<cux::Words<4>*>(maps)[i] = cux::load_global16(from + 16 * i);
  __syncthreads();
  for_units<kBlocksPerWarp>(p.table, [&](int64_t t, int64_t block) {
    if (is_wide(p.table, t, block * kBlock))
      update_wide(p, maps, t, block);
    else
      update_narrow(p, maps, kept + threadIdx.x / 32 * kBlock, t, block);
  });
}

inline cux::Error launch_8bit_update(const AdamwUpdateProblem& p, cux::Stream stream) {
  if (p.table.units == 0) return nullptr;
  return cux::launch(adamw_8bit_update, grid_of<kBlocksPerWarp>(p.table), dim3(kThreads), 0, stream,
                     p);
}

}  // namespace fulgurite::cuda
