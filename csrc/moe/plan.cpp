#include "moe/plan.h"

#include <algorithm>

namespace fulgurite {
namespace {

ExpertsPart part_of(const std::vector<int64_t>& offsets, int64_t first_expert, int64_t last_expert,
                    const int32_t* permutation, int64_t segment_rows) {
  ExpertsPart part{};
  part.first_expert = first_expert;
  part.experts = last_expert - first_expert;
  part.first = offsets[first_expert];
  part.rows = offsets[last_expert] - part.first;
  part.assignments = permutation + part.first;
  for (int64_t e = first_expert; e <= last_expert; ++e)
    part.offsets.push_back(offsets[e] - part.first);
  part.segments = segments_of(part.offsets.data(), part.experts, segment_rows);
  part.begins = first_expert == 0;
  part.ends = last_expert + 1 == static_cast<int64_t>(offsets.size());
  return part;
}

}  // namespace

std::vector<Segment> segments_of(const int64_t* offsets, int64_t E, int64_t rows) {
  std::vector<Segment> segments;
  for (int64_t e = 0; e < E; ++e)
    for (int64_t first = offsets[e]; first < offsets[e + 1]; first += rows)
      segments.push_back({e, first, std::min(rows, offsets[e + 1] - first)});
  return segments;
}

int64_t count_parts(const ExpertSizes& s, int64_t rows, double least) {
  constexpr double kReading = 16;  // multiplications that take as long as reading one weight
  const double work = (rows + kReading * s.E) * s.H * s.I;
  const int64_t most = std::max<int64_t>(rows / s.T, 1);
  return work >= most * least ? most : std::max<int64_t>(work / least, 1);
}

std::vector<ExpertsPart> cut_into_parts(const std::vector<int64_t>& offsets,
                                        const int32_t* permutation, int64_t count,
                                        int64_t segment_rows) {
  const int64_t E = static_cast<int64_t>(offsets.size()) - 1, rows = offsets[E];
  std::vector<ExpertsPart> parts;
  int64_t first = 0;
  for (int64_t e = 1; e <= E; ++e) {
    const bool last = static_cast<int64_t>(parts.size()) + 1 == count;
    if (e < E && (last || offsets[e] - offsets[first] < rows / count)) continue;
    parts.push_back(part_of(offsets, first, e, permutation, segment_rows));
    first = e;
  }
  return parts;
}

int64_t tokens_per_task(const ExpertSizes& s, int64_t rows, int64_t longest) {
  return std::min({s.T, longest, std::max(rows, rows * s.E / s.K)});
}

}  // namespace fulgurite
