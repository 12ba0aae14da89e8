// Experts of all but a token's best groups are struck out, one token in each lane.
#pragma once

#include "moe/cpu/kernels/largest.h"
#include "moe/cpu/kernels/params.h"
#include "moe/rules/order_key.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// Vectors of keys: of each group, and of the kept ones with their numbers.
template <class V>
struct GroupLists {
  IntOf<V>*keys, *top, *at;
};

/// `keys`: a vector for each expert.
template <class V>
void keep_groups(const RouteParams& p, IntOf<V>* keys, const GroupLists<V>& groups) {
  using I = IntOf<V>;
  const int64_t members = p.E / p.n_group;
  const I out = splat<I>(kOut<Element<V>>);
  for (int64_t g = 0; g < p.n_group; ++g)
    groups.keys[g] = group_key<V>(keys + g * members, members, p.group_score);
  largest<I>(groups.keys, p.n_group, p.topk_group, out, groups.top, groups.at);
  const I last = groups.top[p.topk_group - 1], last_at = groups.at[p.topk_group - 1];
  for (int64_t g = 0; g < p.n_group; ++g) {
    const I key = groups.keys[g];
    const I tied = splat<I>(static_cast<Element<I>>(g)) > last_at ? I{} : ~I{};
    const I kept = (key > last) | ((key == last) & tied);
    for (int64_t e = g * members; e < (g + 1) * members; ++e) keys[e] = kept ? keys[e] : out;
  }
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
