// The stable counting sort of assignments by expert.
#pragma once

#include "moe/args.h"

namespace fulgurite {

/// ids: (T,K) int32 or int64. permutation (T·K): sorted position → t·K + j; inverse (T·K): the way back; offsets (E+1).
/// Sentinels come last, with inverse −1. inverse may be null.
void make_plan(const Tensor& ids, int64_t E, int32_t* permutation, int32_t* inverse,
               int64_t* offsets);

}  // namespace fulgurite
