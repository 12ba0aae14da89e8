#include "moe/cpu/experts_parts.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include "cpu/isa.h"
#include "moe/cpu/counting_sort.h"

namespace fulgurite {
namespace {

/// Threads wait for each other after every kernel, so kernels are long beside what is worth waking a thread.
double least_work() {
  constexpr double kLong = 3072;
  return kLong * inline_cost() * at::get_num_threads();
}

}  // namespace

SortedPlan::SortedPlan(const Tensor& ids, const ExpertSizes& s)
    : permutation(at::empty({s.T * s.K}, contiguous_like(ids).dtype(at::kInt))), most_rows(0) {
  std::vector<int64_t> offsets(s.E + 1);
  int32_t* const assignments = permutation.mutable_data_ptr<int32_t>();
  sort_by_expert(ids, s.E, assignments, nullptr, offsets.data());
  rows = offsets[s.E];
  parts = cut_into_parts(offsets, assignments, count_parts(s, rows, least_work()), kSegmentRows);
  for (const ExpertsPart& part : parts) most_rows = std::max(most_rows, part.rows);
}

}  // namespace fulgurite
