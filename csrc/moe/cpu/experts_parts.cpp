#include "moe/cpu/experts_parts.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include "cpu/isa.h"
#include "moe/cpu/plan.h"

namespace fulgurite {
namespace {

/// How many parts. Threads wait for each other after every kernel, so kernels are long beside what is worth waking a thread; a part
/// reads and writes the sums of every token, so there are at most K.
int64_t count_parts(int64_t rows, const ExpertSizes& s) {
  constexpr double kLong = 3072,
                   kReading = 16;  // multiplications that take as long as reading one weight
  const double work = (rows + kReading * s.E) * s.H * s.I,
               least = kLong * inline_cost() * at::get_num_threads();
  const int64_t most = std::max<int64_t>(rows / s.T, 1);
  return work >= most * least ? most : std::max<int64_t>(work / least, 1);
}

ExpertsPart part_of(const std::vector<int64_t>& offsets, int64_t first_expert, int64_t last_expert,
                    const int32_t* permutation) {
  ExpertsPart part{};
  part.first_expert = first_expert;
  part.experts = last_expert - first_expert;
  part.first = offsets[first_expert];
  part.rows = offsets[last_expert] - part.first;
  part.assignments = permutation + part.first;
  for (int64_t e = first_expert; e <= last_expert; ++e)
    part.offsets.push_back(offsets[e] - part.first);
  part.segments = segments_of(part.offsets.data(), part.experts);
  part.begins = first_expert == 0;
  part.ends = last_expert + 1 == static_cast<int64_t>(offsets.size());
  return part;
}

}  // namespace

SortedPlan::SortedPlan(const Tensor& ids, const ExpertSizes& s)
    : permutation(at::empty({s.T * s.K}, contiguous_like(ids).dtype(at::kInt))), most_rows(0) {
  std::vector<int64_t> offsets(s.E + 1);
  int32_t* const assignments = permutation.mutable_data_ptr<int32_t>();
  make_plan(ids, s.E, assignments, nullptr, offsets.data());
  rows = offsets[s.E];
  const int64_t count = count_parts(rows, s);
  int64_t first = 0;
  for (int64_t e = 1; e <= s.E; ++e) {
    const bool last = static_cast<int64_t>(parts.size()) + 1 == count;
    if (e < s.E && (last || offsets[e] - offsets[first] < rows / count)) continue;
    parts.push_back(part_of(offsets, first, e, assignments));
    most_rows = std::max(most_rows, parts.back().rows);
    first = e;
  }
}

}  // namespace fulgurite
