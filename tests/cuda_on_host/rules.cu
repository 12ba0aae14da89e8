// What devices share, compiled as device code: every header of csrc/*/rules, and of their functions those that kernels of CUDA
// call. Compiling is the whole test. tests/python/common/test_layers.py looks that no header is missing.
#include "amp/rules/choices.h"
#include "amp/rules/problem.h"
#include "amp/rules/scale.h"
#include "amp/rules/stats_tree.h"
#include "attention/rules/activations.h"
#include "attention/rules/choices.h"
#include "attention/rules/problem.h"
#include "attention/rules/row_statistics.h"
#include "attention/rules/scores.h"
#include "attention/rules/tile_scores.h"
#include "linear/rules/choices.h"
#include "linear/rules/problem.h"
#include "moe/rules/activations.h"
#include "moe/rules/balance.h"
#include "moe/rules/choices.h"
#include "moe/rules/order.h"
#include "moe/rules/order_key.h"
#include "moe/rules/problem.h"
#include "moe/rules/route_weights.h"
#include "moe/rules/scores.h"
#include "norm/rules/problem.h"
#include "optim/rules/dynamic_map.h"
#include "optim/rules/operands.h"
#include "optim/rules/problem.h"
#include "optim/rules/rounding.h"
#include "optim/rules/split.h"
#include "optim/rules/step.h"
#include "optim/rules/step_scalars.h"

namespace fulgurite {

/// Math (common/value.h) as CUDA's own functions.
struct CudaMath {
  template <class T>
  __device__ static T exp(T x) {
    return ::exp(x);
  }
  template <class T>
  __device__ static T erf(T x) {
    return ::erf(x);
  }
  template <class T>
  __device__ static T sigmoid(T x) {
    return T(1) / (T(1) + ::exp(-x));
  }
  template <class T>
  __device__ static T sqrt(T x) {
    return ::sqrt(x);
  }
  template <class T>
  __device__ static T abs(T x) {
    return ::fabs(x);
  }
  template <class T>
  __device__ static T max(T a, T b) {
    return a > b ? a : b;
  }
  template <class T>
  __device__ static T min(T a, T b) {
    return a < b ? a : b;
  }
  template <class T>
  __device__ static T fma(T a, T b, T c) {
    return ::fma(a, b, c);
  }
  template <class T>
  __device__ static T madd(T a, T b, T c) {
    return ::fma(a, b, c);
  }
};

__global__ void amp_rules(ScaleState* state, ScaleRule rule, float* factor) {
  update_scale(*state, *factor > 0, rule);
  *factor = clip_factor(*factor, 1, 1, 1e-6);
}

template <class T>
__global__ void attention_activations(AttentionProblem p, T* x) {
  x[1] = activation<CudaMath>(p.score, p.score_scale, x[0]);
  x[2] = activation_slope<CudaMath>(p.score, p.score_scale, x[0]);
  x[3] = lse_is_coarse(x[0], p.dtype);
}

__global__ void attention_pairs(AttentionProblem p, int64_t b, int64_t h, int64_t i, int64_t j,
                                uint64_t* words, const int64_t* philox) {
  const BlockScores scores(p.rule, b, h);
  const Seen mask = scores.mask_seen(i, i + 64, j, j + 64, static_cast<int>(threadIdx.x), 32);
  const TileState state = tile_state(scores.outline(i, i + 64, j, j + 64), mask);
  const uint32_t kept = scores.kept_bits(i, j, 32, scores.reach(i, j, 64).bits(0));
  words[4] = kept + static_cast<uint32_t>(state) + p.rule.kept(b, h, i, j);
  make_dropout_rule(0.5, philox, 4)
      .words(b, h, i, words[0], *reinterpret_cast<uint64_t (*)[4]>(words));
}

template <class T>
__global__ void expert_rules(RouteProblem p, Chosen<T> chosen, ActivationRule rule, T* x) {
  x[1] = own_score<CudaMath>(p.score, x[0]);
  grad_chosen<CudaMath>(p, chosen);
  x[2] = number_of<T>(group_key<T>(chosen.ids, p.K, GroupScore::kTop2));
  with_activation(rule, [x](const auto& activation) {
    const Curve<T> curve = activation.template curve<CudaMath>(x[0]);
    x[3] = activation.template value<CudaMath>(x[0]) + activation.template up<CudaMath>(x[0]);
    x[4] = activation.template through_up<CudaMath>(curve.slope, curve.value);
  });
}

__global__ void balance_rules(BalanceKind kind, BiasRule rule, double* m, int64_t E) {
  const Cv2 cv2(m, E);
  m[0] = cv2.loss() + cv2.coefficient(m[1]);
  m[1] = assignment_share(kind, E, counted_choices(kind, E), 3) + bias_update(rule, m[2], E, 3, 5);
}

__global__ void step_rules(const AdamwHyper* hyper, StepNumbers<float>* numbers, int64_t step,
                           float* x, uint32_t* bits, const DynamicMap* map) {
  *numbers = StepNumbers<float>(step_scalars(*hyper, step, 1, true, false));
  const StepElement<float> r =
      step_element<CudaMath>(*numbers, true, true, x[0], x[1], x[2], x[3], x[4]);
  x[0] = averaged(*numbers, split_value<float>(bits[0], split_bits(r.p).low), r.m);
  const uint32_t word = rounding_word(rounding_seed(step, 1), 2, step);
  bits[1] = stochastic_bfloat16(x[0], word) + stochastic_float16<CudaMath>(x[1], word);
  if (has_codes(x[2]))
    bits[2] = static_cast<uint32_t>(nearest_code<true, CudaMath>(*map, x[2], x[3]));
}

__global__ void stats_rules(double* sums, int64_t n) {
  sums[0] = scaled_square(tree_sum(n, [=](int64_t i) { return sums[i]; }), 0.5);
}

template __global__ void attention_activations(AttentionProblem, float*);
template __global__ void expert_rules(RouteProblem, Chosen<float>, ActivationRule, float*);
template __global__ void expert_rules(RouteProblem, Chosen<double>, ActivationRule, double*);

}  // namespace fulgurite
