// The loss scale and the factor of a clipped norm, by the rules of rules/scale.h: numbers that stay on the card.
//
// Reads: the norm and the scale; the scale's state.
// Writes: the factor; the state.
// Task: one thread has all of it.
// Order of sums: none.

#pragma once

#include <cmath>

#include "amp/cuda/problem.h"
#include "cuda/cux.h"

namespace fulgurite::cuda {

static __global__ void __launch_bounds__(1) clip_multiplier(ClipMultiplierProblem p) {
  *p.factor = clip_factor(sqrt(*p.norm_sq), p.max_norm, p.inv_scale ? *p.inv_scale : 1.0, p.eps);
}

static __global__ void __launch_bounds__(1) update_scale_state(UpdateScaleProblem p) {
  int64_t* const counters[] = {p.counters, p.counters + p.counters_stride,
                               p.counters + 2 * p.counters_stride,
                               p.counters + 3 * p.counters_stride};
  ScaleState s{*p.scale,     *p.tracker,   *p.hysteresis, *counters[0],
               *counters[1], *counters[2], *counters[3]};
  update_scale(s, *p.found_inf == 0, p.rule);
  *p.scale = s.scale;
  *p.tracker = s.tracker;
  *p.hysteresis = s.hysteresis;
  *counters[0] = s.clean;
  *counters[1] = s.skipped;
  *counters[2] = s.in_a_row;
  *counters[3] = s.last_skipped;
}

}  // namespace fulgurite::cuda
