#include "amp/plan.h"

#include <algorithm>

#include "amp/rules/problem.h"
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
  Total total{0, -1};
  for (size_t t = 0; t + 1 < first_.size(); ++t) {
    double sum = 0;
    for (int64_t slot = first_[t]; slot < first_[t + 1]; ++slot) {
      sum += sums[slot];
      if (bad[slot] && total.first_bad < 0) total.first_bad = static_cast<int64_t>(t);
    }
    total.sum += sum;
  }
  return total;
}

}  // namespace fulgurite
