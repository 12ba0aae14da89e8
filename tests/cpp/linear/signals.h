// Signals (B,C,L) laid out in every way that a kernel takes.
#pragma once

#include "elements.h"
#include "linear/rules/problem.h"

namespace fulgurite {

enum class SignalOrder { kPositionsLast, kChannelsLast, kGaps };
inline constexpr SignalOrder kSignalOrders[] = {SignalOrder::kPositionsLast,
                                                SignalOrder::kChannelsLast, SignalOrder::kGaps};

struct TestSignal {
  int64_t batch, channel, position;
  Elements x;

  TestSignal(Dtype dtype, int64_t B, int64_t C, int64_t L, SignalOrder order, int seed)
      : batch(order == SignalOrder::kGaps ? 2 * C * (3 * L + 1) : C * L),
        channel(order == SignalOrder::kPositionsLast  ? L
                : order == SignalOrder::kChannelsLast ? 1
                                                      : 2 * (3 * L + 1)),
        position(order == SignalOrder::kPositionsLast  ? 1
                 : order == SignalOrder::kChannelsLast ? C
                                                       : 3),
        x(Elements::sines(dtype, B * batch + 1, seed)) {}
  int64_t at(int64_t b, int64_t c, int64_t t) const {
    return b * batch + c * channel + t * position;
  }
  double operator()(int64_t b, int64_t c, int64_t t) const { return x[at(b, c, t)]; }
  Signal signal() const { return {x.data(), batch, channel, position}; }
};

}  // namespace fulgurite
