// AdamW over a table of tensors: two launches, of which the first makes the numbers of the step.
//
// Reads:         counts of steps, hyper; gradients, parameters or masters, moments
// Writes:        counts of steps; parameters, masters, moments, copies and averages; zeros into the gradients where asked
// Task:          a thread is a tensor; then a warp is four units of 256 elements, a unit of one tensor (units.cuh)
// Order of sums: none; every element is on its own and every operation is rounded once (rules/step.h)
#pragma once

#include "optim/cuda/kernels/values.cuh"

namespace fulgurite::cuda {

constexpr int kUnitsPerWarp = 4;

static __global__ void __launch_bounds__(kThreads) adamw_count(AdamwCountProblem p) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (t >= p.table.count || is_skipped(p.found_inf)) return;
  const AdamwEntry& entry = p.table.entries[t];
  const double* const row = p.hyper + entry.group * p.hyper_stride[0];
  const auto value = [&](int k) { return row[k * p.hyper_stride[1]]; };
  const AdamwHyper hyper{value(0), value(1), value(2), value(3), value(4), value(5)};
  const float step = *entry.step + 1;
  *entry.step = step;
  const double multiplier = p.grad_multiplier ? *p.grad_multiplier : 1.0;
  p.numbers[t] = StepNumbers<float>(
      step_scalars(hyper, static_cast<int64_t>(step), multiplier, p.decoupled, p.maximize));
}

template <class Unit>
__device__ void update_unit(const AdamwUpdateProblem& p, int64_t t, int64_t begin) {
  const StepNumbers<float> s = p.numbers[t];
  Operands<Unit> o(p.table, t, begin, lane_of_thread());
  Value<Unit> value(p.table.entries[t]);
  Lane<Unit::kPerLane> grad, m, v, vmax{};
  const bool amsgrad = o.has(kMaxExpAvgSq);
  o.for_pieces([&] {
    value.load(o);
    o.load(kGrad, grad);
    o.load(kExpAvg, m);
    o.load(kExpAvgSq, v);
    if (amsgrad) o.load(kMaxExpAvgSq, vmax);
  });

  Lane<Unit::kPerLane>& x = value.numbers(o);
  o.widen(kGrad, grad);
  o.widen(kExpAvg, m);
  o.widen(kExpAvgSq, v);
  if (amsgrad) o.widen(kMaxExpAvgSq, vmax);
  CUX_UNROLL
  for (int i = 0; i < Unit::kPerLane; ++i) {
    const StepElement<float> r =
        step_element<cux::ExactMath>(s, s.weight_decay != 0, amsgrad, number(x, i), number(grad, i),
                                     number(m, i), number(v, i), number(vmax, i));
    x.word[i] = same_bits<uint32_t>(r.p);
    m.word[i] = same_bits<uint32_t>(r.m);
    v.word[i] = same_bits<uint32_t>(r.v);
    vmax.word[i] = same_bits<uint32_t>(r.vmax);
  }

  const RoundingSeed seed = seed_of(p);
  o.for_pieces([&] {
    Lane<Unit::kPerLane> ema;  // not before: registers
    if (o.has(kEma)) o.load(kEma, ema);
    value.write(o, seed);
    o.write(kExpAvg, m);
    o.write(kExpAvgSq, v);
    if (amsgrad) o.write(kMaxExpAvgSq, vmax);
    if (o.has(kEma)) {
      o.for_piece([&](int i) {
        ema.word[i] = same_bits<uint32_t>(averaged(s, number(ema, i), number(x, i)));
      });
      o.write(kEma, ema);
    }
    if (o.has(kCopy)) o.write(kCopy, x);
    if (p.zero_grads) o.write(kGrad, Lane<Unit::kPerLane>{});
  });
}

static __global__ void __launch_bounds__(kThreads, 2) adamw_update(AdamwUpdateProblem p) {
  if (is_skipped(p.found_inf)) return;
  for_units<kUnitsPerWarp>(p.table, [&](int64_t t, int64_t block) {
    const int64_t begin = block * kBlock;
    if (is_wide(p.table, t, begin)) return update_unit<Wide>(p, t, begin);
    CUX_NO_UNROLL
    for (int i = 0; i < kBlock; i += Narrow<1>::kElements) update_unit<Narrow<1>>(p, t, begin + i);
  });
}

inline cux::Error launch_count(const AdamwCountProblem& p, cux::Stream stream) {
  if (p.table.count == 0) return nullptr;
  const auto blocks = static_cast<unsigned>((p.table.count + kThreads - 1) / kThreads);
  return cux::launch(adamw_count, dim3(blocks), dim3(kThreads), 0, stream, p);
}

inline cux::Error launch_update(const AdamwUpdateProblem& p, cux::Stream stream) {
  if (p.table.units == 0) return nullptr;
  return cux::launch(adamw_update, grid_of<kUnitsPerWarp>(p.table), dim3(kThreads), 0, stream, p);
}

}  // namespace fulgurite::cuda
