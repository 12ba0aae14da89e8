// The stable counting sort of assignments by expert.
#pragma once

#include "moe/cpu/tensors.h"

namespace fulgurite {

/// permutation (T·K): sorted position → t·K + j; inverse (T·K): the way back; offsets (E+1).
/// Sentinels come last, with inverse −1. inverse may be null.
inline void make_plan(const Ids& ids, int64_t T, int64_t K, int64_t E, int32_t* permutation,
                      int32_t* inverse, int64_t* offsets) {
  for (int64_t e = 0; e <= E; ++e) offsets[e] = 0;
  for (int64_t t = 0; t < T; ++t)
    for (int64_t j = 0; j < K; ++j)
      if (const int64_t e = ids(t, j); e >= 0 && e < E) ++offsets[e];
  int64_t total = 0;
  for (int64_t e = 0; e < E;
       ++e) {  // offsets[e]: where expert e begins, then its next free position
    const int64_t rows = offsets[e];
    offsets[e] = total;
    total += rows;
  }
  int64_t tail = total;
  for (int64_t t = 0, a = 0; t < T; ++t)
    for (int64_t j = 0; j < K; ++j, ++a) {
      const int64_t e = ids(t, j);
      const bool sentinel = e < 0 || e >= E;
      const int64_t position = sentinel ? tail++ : offsets[e]++;
      permutation[position] = static_cast<int32_t>(a);
      if (inverse) inverse[a] = sentinel ? -1 : static_cast<int32_t>(position);
    }
  for (int64_t e = E; e > 0; --e)
    offsets[e] = offsets[e - 1];  // each now stands where its expert ends
  offsets[0] = 0;
}

}  // namespace fulgurite
