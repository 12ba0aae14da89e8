// Every order is one of falling values, and the earlier assignment among equals:
//
//   choice     −j                      all first choices before second ones
//   weight     w_tj
//   priority   max_j w_tj              over the assignments of the token that have an expert
//
// The assignments of each expert are gathered by a plan without a capacity, and the first of them selected.
#include "moe/cpu/drop.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "common/check_choice.h"
#include "moe/rules/choices.h"

#include "moe/cpu/counting_sort.h"
#include "moe/cpu/tensors.h"
#include "moe/rules/order.h"

namespace fulgurite {
namespace {

/// ids as int32, E for every sentinel.
Tensor experts_or_sentinel(const Tensor& ids, int64_t E) {
  Tensor experts = at::empty(ids.sizes(), ids.options().dtype(at::kInt));
  int32_t* to = experts.mutable_data_ptr<int32_t>();
  const Ids given(ids);
  for (int64_t t = 0; t < ids.size(0); ++t)
    for (int64_t j = 0; j < ids.size(1); ++j) {
      const int64_t e = given(t, j);
      *to++ = static_cast<int32_t>(e >= 0 && e < E ? e : E);
    }
  return experts;
}

/// The best weight of each token: NaN if it has no other.
std::vector<double> best_weights(const int32_t* experts, const double* weights, int64_t T,
                                 int64_t K, int64_t E) {
  std::vector<double> best(static_cast<size_t>(T), std::numeric_limits<double>::quiet_NaN());
  for (int64_t t = 0; t < T; ++t)
    for (int64_t a = t * K; a < (t + 1) * K; ++a)
      if (experts[a] < E && !(weights[a] <= best[t]) && weights[a] == weights[a])
        best[t] = weights[a];
  return best;
}

/// What an assignment is served by, by its number t·K + j.
std::vector<double> values(const PlanArgs& args, const int32_t* experts, int64_t E) {
  const int64_t T = args.ids.size(0), K = args.ids.size(1);
  std::vector<double> by(static_cast<size_t>(T * K));
  const auto given = [&] { return args.weights->to(at::kDouble).contiguous(); };
  switch (choice_of(kDrops, args.drop)) {
    case Drop::kToken: break;  // the plan's own order
    case Drop::kChoice:
      for (int64_t a = 0; a < T * K; ++a) by[a] = -static_cast<double>(a % K);
      break;
    case Drop::kWeight: {
      const Tensor weights = given();
      std::copy_n(weights.const_data_ptr<double>(), T * K, by.begin());
      break;
    }
    case Drop::kPriority: {
      const Tensor weights = given();
      const std::vector<double> best =
          best_weights(experts, weights.const_data_ptr<double>(), T, K, E);
      for (int64_t a = 0; a < T * K; ++a) by[a] = best[a / K];
      break;
    }
  }
  return by;
}

/// Of the n assignments of expert e, those that find no room go to E.
void drop_of_expert(const int32_t* rows, int64_t n, int64_t capacity, const double* by, int32_t e,
                    int32_t E, int32_t* experts) {
  if (n <= capacity) return;
  for (int64_t i = 0; i < n; ++i) experts[rows[i]] = E;
  for (const Candidate& kept :
       select_first(n, capacity, [&](int64_t i) { return Candidate{by[rows[i]], rows[i]}; }))
    experts[kept.index] = e;
}

}  // namespace

Tensor drop_overflow(const PlanArgs& args) {
  const int64_t n = args.ids.numel(), E = args.num_experts.expect_int(),
                capacity = args.capacity.expect_int();
  Tensor kept = experts_or_sentinel(args.ids, E);
  int32_t* const experts = kept.mutable_data_ptr<int32_t>();
  const std::vector<double> by = values(args, experts, E);
  std::vector<int32_t> rows(static_cast<size_t>(n));
  std::vector<int64_t> offsets(static_cast<size_t>(E + 1));
  sort_by_expert(kept, E, rows.data(), nullptr, offsets.data());
  at::parallel_for(0, E, experts_per_thread(n, E), [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e)
      drop_of_expert(rows.data() + offsets[e], offsets[e + 1] - offsets[e], capacity, by.data(),
                     static_cast<int32_t>(e), static_cast<int32_t>(E), experts);
  });
  return kept;
}

}  // namespace fulgurite
