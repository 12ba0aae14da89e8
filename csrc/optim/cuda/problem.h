// The calls of the optimizer as its kernels of CUDA see them. All that is known of the tensors before a step lies in a table of
// the card's memory (table.h); what a step brings comes with the launches.
#pragma once

#include "cuda/stream.h"
#include "optim/rules/problem.h"
#include "optim/rules/step.h"

namespace fulgurite::cuda {

/// What an element is: 1 << shift bytes, numbers of dtype where they are numbers.
struct OperandFormat {
  uint32_t shift;
  Dtype dtype;

  FULGURITE_HOST_DEVICE uint32_t bits() const { return shift << 2 | static_cast<uint32_t>(dtype); }
  static FULGURITE_HOST_DEVICE OperandFormat of(uint32_t formats, int k) {
    const uint32_t own = formats >> 4 * k & 15;
    return {own >> 2, static_cast<Dtype>(own & 3)};
  }
};

/// A tensor. The gradient's address stands by itself: it is the one that changes between steps.
struct AdamwEntry {
  Walk walk;               // beginning at multiples of kBlock
  void* data[kIndex];      // by operand, null: none
  float* step;             // the count
  BlockScales scales;      // of 8-bit states
  uint32_t formats;        // by operand, four bits each: OperandFormat
  uint32_t present;        // by operand, a bit each
  uint32_t key;            // of stochastic rounding
  int32_t group;           // row of hyper
  bool split, stochastic;  // as in AdamwTensor
};

/// Where the table's parts are. Maps are those of signed and unsigned numbers, for 8-bit states.
struct AdamwTable {
  const AdamwEntry* entries;
  void* const* grads;
  const int64_t* layouts;
  const DynamicMap* maps;
  int64_t count, units;  // tensors, and blocks of kBlock elements
};

/// The first launch of a step: numbers of each tensor, and its count of steps raised.
struct AdamwCountProblem {
  AdamwTable table;
  StepNumbers<float>* numbers;
  const double* hyper;
  int64_t hyper_stride[2];
  const float *grad_multiplier, *found_inf;  // or null
  bool decoupled, maximize;
};
cux::Error run_adamw_count(const AdamwCountProblem& p, cux::Stream stream);

/// The second launch.
struct AdamwUpdateProblem {
  AdamwTable table;
  const StepNumbers<float>* numbers;
  const float* found_inf;  // or null
  const int64_t* seed;     // (seed, step), or null
  int64_t seed_stride;
  bool zero_grads;
};
cux::Error run_adamw_update(const AdamwUpdateProblem& p, cux::Stream stream);
cux::Error run_adamw_8bit_update(const AdamwUpdateProblem& p, cux::Stream stream);

/// n elements.
struct SplitMasterProblem {
  SplitProblem halves;
  int64_t n;
};
cux::Error run_split_master(const SplitMasterProblem& p, cux::Stream stream);
cux::Error run_join_master(const SplitMasterProblem& p, cux::Stream stream);

}  // namespace fulgurite::cuda
