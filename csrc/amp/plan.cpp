#include "amp/plan.h"

#include <algorithm>

#include "amp/rules/problem.h"
#include "amp/rules/stats_tree.h"
#include "common/ceil_div.h"

namespace fulgurite {

StatsPlan::StatsPlan(const std::vector<int64_t>& numels) : first_{0} {
  first_.reserve(numels.size() + 1);
  for (const int64_t numel : numels) first_.push_back(first_.back() + ceil_div(numel, kStatsBlock));
}

int64_t StatsPlan::gradient_of(int64_t slot) const {
  return std::upper_bound(first_.begin(), first_.end(), slot) - first_.begin() - 1;
}

StatsPlan::Total StatsPlan::total(const double* sums, const bool* bad) const {
  const auto gradients = static_cast<int64_t>(first_.size()) - 1;
  const double sum = tree_sum(gradients, [&](int64_t t) {
    const int64_t first = first_[static_cast<size_t>(t)], next = first_[static_cast<size_t>(t) + 1];
    return tree_sum(next - first, [&](int64_t block) { return sums[first + block]; });
  });
  const bool* const end = bad + slots();
  const bool* const first_bad = std::find(bad, end, true);
  return {sum, first_bad == end ? -1 : gradient_of(first_bad - bad)};
}

}  // namespace fulgurite
