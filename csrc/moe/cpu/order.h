// Who is served first where places are few: the larger value; NaN last; the lower index among equals.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace fulgurite {

struct Candidate {
  double value;
  int32_t index;
};

/// A total order, so that whoever sorts gets the same.
inline bool goes_before(const Candidate& a, const Candidate& b) {
  const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
  if (a_nan != b_nan) return b_nan;
  if (!a_nan && a.value != b.value) return a.value > b.value;
  return a.index < b.index;
}

/// Moves the first `places` candidates to the front, in no order.
inline void select_first(std::vector<Candidate>& candidates, int64_t places) {
  std::nth_element(candidates.begin(), candidates.begin() + places, candidates.end(), goes_before);
}

}  // namespace fulgurite
