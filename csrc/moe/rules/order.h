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

/// A total order, so that whoever sorts gets the same. No function: those are called through pointers.
inline constexpr auto goes_before = [](const Candidate& a, const Candidate& b) {
  if (a.value > b.value) return true;
  if (a.value < b.value) return false;
  const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
  return a_nan == b_nan ? a.index < b.index : b_nan;
};

/// The first `places` of candidate(0) … candidate(n − 1), in no order. About twice as many are kept while they pass by: who does
/// not go before the last of an earlier selection is out at once.
template <class Make>
std::vector<Candidate> select_first(int64_t n, int64_t places, const Make& candidate) {
  std::vector<Candidate> kept;
  if (places == 0) return kept;
  const size_t wanted = static_cast<size_t>(places), most = 2 * wanted + 32;
  kept.reserve(std::min(static_cast<size_t>(n), most));
  bool selected = false;
  Candidate last{};
  const auto select = [&] {
    std::nth_element(kept.begin(), kept.begin() + (places - 1), kept.end(), goes_before);
    kept.resize(wanted);
    last = kept.back();
    selected = true;
  };
  for (int64_t i = 0; i < n; ++i) {
    const Candidate next = candidate(i);
    if (selected && (next.value < last.value || !goes_before(next, last))) continue;
    kept.push_back(next);
    if (kept.size() == most) select();
  }
  if (kept.size() > wanted) select();
  return kept;
}

}  // namespace fulgurite
