// The numbers of the balance losses and of the selection bias, float64.
//
//   balance   L = Σ_t Σ_e C_e P_te over the T' tokens that the mask keeps, C_e = Σ over e's assignments of a share:
//     switch     E/(T'·K · T')     f_e is the share of T'·K assignments
//     hf         E/(T' · T')       of T'
//     gshard     the same          of the T' first choices
//     sequence   the switch loss of each sequence, averaged over those that have a token
//     cv2        L = var(m)/mean(m)², m_e = Σ_t P_te, var unbiased;   C_e = dL/dm_e = 2(m_e − μ)/((E−1)μ²) − 2 var/(E μ³)
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "moe/rules/choices.h"

namespace fulgurite {

/// How many of a token's K choices count.
FULGURITE_HOST_DEVICE int64_t counted_choices(BalanceKind kind, int64_t K) {
  switch (kind) {
    case BalanceKind::kSwitch:
    case BalanceKind::kHf:
    case BalanceKind::kSequence:
    case BalanceKind::kCv2: return K;
    case BalanceKind::kGshard: return K < 1 ? K : 1;
  }
  __builtin_unreachable();
}

/// What an assignment adds to its expert's coefficient, of `tokens` kept ones; cv2 has none. Of a sequence: of its own tokens, where
/// `present` sequences have any.
FULGURITE_HOST_DEVICE double assignment_share(BalanceKind kind, int64_t E, int64_t K,
                                              int64_t tokens, int64_t present = 1) {
  const auto of = [&](int64_t shares) {
    return static_cast<double>(E) / (static_cast<double>(shares) * static_cast<double>(tokens) *
                                     static_cast<double>(present));
  };
  switch (kind) {
    case BalanceKind::kSwitch:
    case BalanceKind::kSequence: return of(tokens * K);
    case BalanceKind::kHf:
    case BalanceKind::kGshard: return of(tokens);
    case BalanceKind::kCv2: return 0;
  }
  __builtin_unreachable();
}

struct Cv2 {
  double E, mean, variance;

  /// Of the sums m of E ≥ 2 experts.
  FULGURITE_HOST_DEVICE Cv2(const double* m, int64_t experts)
      : E(static_cast<double>(experts)), mean(0), variance(0) {
    for (int64_t e = 0; e < experts; ++e) mean += m[e] / E;
    for (int64_t e = 0; e < experts; ++e) variance += (m[e] - mean) * (m[e] - mean) / (E - 1);
  }
  FULGURITE_HOST_DEVICE double loss() const { return variance / (mean * mean); }
  FULGURITE_HOST_DEVICE double coefficient(double m) const {
    return 2 * (m - mean) / ((E - 1) * mean * mean) - 2 * variance / (E * mean * mean * mean);
  }
};

/// sign:          update = rate · sign(mean − count)
/// proportional:  update = rate · (mean − count)/mean
/// `total` is Σ count > 0. As E·(mean − count) is an integer, the sign is exact.
FULGURITE_HOST_DEVICE double bias_update(BiasRule rule, double rate, int64_t E, int64_t count,
                                         int64_t total) {
  const int64_t lack = total - E * count;
  switch (rule) {
    case BiasRule::kSign: return lack > 0 ? rate : lack < 0 ? -rate : 0.0;
    case BiasRule::kProportional:
      return rate * (static_cast<double>(lack) / static_cast<double>(total));
  }
  __builtin_unreachable();
}

}  // namespace fulgurite
