// From the sizes of a list of gradients to the blocks of their statistics, and from these to those of the list.
#pragma once

#include <cstdint>
#include <vector>

namespace fulgurite {

/// Slots number the blocks of kStatsBlock elements over all gradients, in order.
class StatsPlan {
 public:
  explicit StatsPlan(const std::vector<int64_t>& numels);

  int64_t slots() const { return first_.back(); }
  /// The slot of each gradient's first block; one more for the end.
  const std::vector<int64_t>& first() const { return first_; }
  /// Calls visit(gradient, block of it, slot) for the slots [first, last).
  template <class Visit>
  void for_slots(int64_t first, int64_t last, const Visit& visit) const {
    int64_t gradient = gradient_of(first);
    for (int64_t slot = first; slot < last; ++slot) {
      while (first_[gradient + 1] <= slot) ++gradient;
      visit(gradient, slot - first_[gradient], slot);
    }
  }

  struct Total {
    double sum;         // of the gradients' sums, each of its blocks', by stats_tree.h
    int64_t first_bad;  // gradient with a bad block; −1: none
  };
  Total total(const double* sums, const bool* bad) const;

 private:
  int64_t gradient_of(int64_t slot) const;

  std::vector<int64_t> first_;
};

}  // namespace fulgurite
