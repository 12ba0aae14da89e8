// Assignments are cut into streams, one after another: each is counted, then placed behind what its experts have of the
// streams before it. Two streams are read in turn, so that one waits for no counter of the other; more of them, a power of two
// apart, get in each other's way in the cache. Groups of two are spread over the threads.
#include "moe/cpu/counting_sort.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "common/ceil_div.h"

namespace fulgurite {
namespace {

constexpr int64_t kStreams = 2;  // read in turn

template <class Id>
class CountingSort {
 public:
  CountingSort(const Id* ids, int64_t n, int64_t E, int64_t capacity)
      : ids_(ids),
        n_(n),
        E_(E),
        capacity_(std::min(capacity, n)),
        groups_(std::max<int64_t>(ceil_div(n, kPlanGroup), 1)),
        length_(ceil_div(n, groups_ * kStreams)),
        next_(static_cast<size_t>(groups_ * kStreams * (E + 1))) {}

  void run(int32_t* permutation, int32_t* inverse, int64_t* offsets) {
    for_groups([&](int64_t group) {
      in_turn(group, [&](int32_t* counters, int64_t a) { ++counters[bucket(ids_[a])]; });
    });
    begin_streams(offsets);
    if (offsets[E_] == n_)
      place<true>(permutation, inverse, offsets);
    else
      place<false>(permutation, inverse, offsets);
  }

 private:
  /// kServed: all assignments have an expert with room.
  template <bool kServed>
  void place(int32_t* permutation, int32_t* inverse, const int64_t* offsets) {
    for_groups([&](int64_t group) {
      in_turn(group, [&](int32_t* counters, int64_t a) {
        int64_t e = kServed ? int64_t{ids_[a]} : bucket(ids_[a]);
        if (!kServed && e < E_ && counters[e] == offsets[e + 1]) e = E_;
        const int32_t position = counters[e]++;
        permutation[position] = static_cast<int32_t>(a);
        if (inverse) inverse[a] = !kServed && e == E_ ? -1 : position;
      });
    });
  }

  /// Sentinels have the last one: as unsigned numbers, those below 0 are large.
  int64_t bucket(Id id) const {
    return static_cast<int64_t>(
        std::min(static_cast<uint64_t>(int64_t{id}), static_cast<uint64_t>(E_)));
  }
  int32_t* counters(int64_t stream) { return next_.data() + stream * (E_ + 1); }

  template <class Run>
  void for_groups(const Run& run) const {
    at::parallel_for(0, groups_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) run(group);
    });
  }
  /// Calls visit(counters of its stream, assignment) for the streams of a group, each in order.
  template <class Visit>
  void in_turn(int64_t group, const Visit& visit) {
    const int64_t first = group * kStreams, begin = first * length_;
    int32_t* own[kStreams];
    for (int64_t s = 0; s < kStreams; ++s) own[s] = counters(first + s);
    // The last group may be shorter: as long as all of its streams go on, nothing is asked.
    const int64_t all = std::clamp<int64_t>(n_ - begin - (kStreams - 1) * length_, 0, length_);
    for (int64_t i = 0; i < all; ++i) {
#pragma GCC unroll 2
      for (int64_t s = 0; s < kStreams; ++s) visit(own[s], begin + s * length_ + i);
    }
    for (int64_t i = all; i < length_; ++i)
      for (int64_t s = 0; s < kStreams; ++s)
        if (const int64_t a = begin + s * length_ + i; a < n_) visit(own[s], a);
  }
  /// From counts to where each stream's assignments of each expert begin, and of those without.
  void begin_streams(int64_t* offsets) {
    offsets[0] = 0;
    for (int64_t e = 0; e < E_; ++e)
      offsets[e + 1] = begin_expert(e, offsets[e], offsets[e] + capacity_);
    begin_expert(E_, offsets[E_], n_);
  }
  /// Returns the end of the expert, which is not past `limit`: what does not fit is counted with the sentinels.
  int64_t begin_expert(int64_t e, int64_t position, int64_t limit) {
    for (int64_t s = 0; s < groups_ * kStreams; ++s) {
      const int64_t count = counters(s)[e], fits = std::min(count, limit - position);
      counters(s)[e] = static_cast<int32_t>(position);
      if (fits < count) counters(s)[E_] += static_cast<int32_t>(count - fits);
      position += fits;
    }
    return position;
  }

  const Id* ids_;
  int64_t n_, E_, capacity_, groups_, length_;
  std::vector<int32_t> next_;
};

}  // namespace

void sort_by_expert(const Tensor& ids, int64_t E, int32_t* permutation, int32_t* inverse,
                    int64_t* offsets, int64_t capacity) {
  const Tensor dense = ids.contiguous();
  if (ids.scalar_type() == at::kLong)
    CountingSort(dense.const_data_ptr<int64_t>(), ids.numel(), E, capacity)
        .run(permutation, inverse, offsets);
  else
    CountingSort(dense.const_data_ptr<int32_t>(), ids.numel(), E, capacity)
        .run(permutation, inverse, offsets);
}

}  // namespace fulgurite
