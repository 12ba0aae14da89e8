// Split masters on their own: float32 to halves and back.
//
// Reads: float32 masters; join the halves.
// Writes: high halves (the bfloat16 parameter) and low ones; join the masters.
// Task: a range of elements.
// Order of sums: none.

#include "optim/cpu/kernels/params.h"
#include "optim/cpu/kernels/split.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

constexpr int W = kLanes<float>;

/// The same vector code for whole vectors and for the last few elements, which pass through a full
/// one.
template <class In, class Out>
FULGURITE_INLINE void move(Out* to, const In* from, int64_t n) {
  for (int64_t i = 0; i < n && i < W; ++i) to[i] = from[i];
}

}  // namespace

void split_master(const SplitProblem& p, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; i += W) {
    float master[W] = {};
    uint16_t high[W];
    int16_t low[W];
    move(master, p.master + i, last - i);
    const SplitHalves<W> halves = split<W>(load<Vec<float, W>>(master));
    store(high, halves.high);
    store(low, halves.low);
    move(p.high + i, high, last - i);
    move(p.low + i, low, last - i);
  }
}

void join_master(const SplitProblem& p, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; i += W) {
    float master[W];
    uint16_t high[W] = {};
    int16_t low[W] = {};
    move(high, p.high + i, last - i);
    move(low, p.low + i, last - i);
    store(master, join<W>(load<Vec<uint16_t, W>>(high), load<Vec<int16_t, W>>(low)));
    move(p.master + i, master, last - i);
  }
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
