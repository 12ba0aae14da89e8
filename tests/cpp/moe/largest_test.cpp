// The two lists of a token's largest keys: the packed one is the other's wherever it answers, and answers where it should.
#include "moe/cpu/kernels/largest_packed.h"

#include <limits>
#include <random>
#include <vector>

#include "catch.h"
#include "moe/rules/order_key.h"

using namespace fulgurite;
using namespace fulgurite::FULGURITE_VARIANT;

namespace {

/// Keys of E numbers for each lane, some of them struck out.
template <class T>
struct Keys {
  using V = Native<T>;
  using I = IntOf<V>;
  std::vector<I> keys;
  I bits{};

  template <class Draw>
  Keys(int64_t E, double out, std::mt19937& random, const Draw& draw) {
    std::uniform_real_distribution<double> uniform;
    for (int64_t e = 0; e < E; ++e) {
      V x{};
      I struck{};
      for (int lane = 0; lane < kWidth<V>; ++lane) {
        x[lane] = draw(random);
        struck[lane] = uniform(random) < out ? -1 : 0;
      }
      bits |= bit_cast<I>(x);
      keys.push_back(struck ? splat<I>(kOut<T>) : order_key(x));
    }
  }

  /// Whether the packed list answered; if so, as the other does, lane by lane down to the first that is struck out.
  bool answers(int64_t K) const {
    const int64_t E = static_cast<int64_t>(keys.size());
    const I lowest = splat<I>(kOut<T>);
    std::vector<I> top(K), at(K), packed(K), whose(K);
    largest(keys.data(), E, K, lowest, top.data(), at.data());
    if (!largest_packed(keys.data(), E, K, lowest, bits, packed.data(), whose.data())) return false;
    bool same = true;
    for (int lane = 0; lane < kWidth<V>; ++lane)
      for (int64_t j = 0; j < K && top[j][lane] != kOut<T>; ++j)
        same &= whose[j][lane] == at[j][lane];
    CHECK(same);
    return true;
  }
};

constexpr int64_t kExperts[] = {1, 2, 7, 16, 64, 200, 256};

}  // namespace

TEMPLATE_TEST_CASE("numbers of 16 bits are always told apart, equal ones and NaN too", "[largest]",
                   float, double) {
  using T = TestType;
  std::mt19937 random(0);
  const T values[] = {T(0),
                      T(-0.0),
                      T(1),
                      T(-1),
                      T(1.125),
                      T(2.5),
                      T(-2.25),
                      std::numeric_limits<T>::infinity(),
                      -std::numeric_limits<T>::infinity(),
                      std::numeric_limits<T>::quiet_NaN()};
  std::uniform_int_distribution<int> which(0, 9);
  for (const int64_t E : kExperts)
    for (const int64_t K : {int64_t{1}, int64_t{2}, int64_t{8}, int64_t{11}, E})
      for (const double out : {0.0, 0.5})
        if (K <= E)
          CHECK(Keys<T>(E, out, random, [&](auto& r) { return values[which(r)]; }).answers(K));
}

TEMPLATE_TEST_CASE("neighbours in the last bits are never mistaken", "[largest]", float, double) {
  using T = TestType;
  std::mt19937 random(1);
  std::uniform_int_distribution<int> steps(0, 40);
  std::normal_distribution<double> normal;
  const auto close = [&](auto& r) { return 1 + T(steps(r)) * std::numeric_limits<T>::epsilon(); };
  const auto spread = [&](auto& r) { return static_cast<T>(normal(r)); };
  int answers = 0;
  for (int trial = 0; trial < 50; ++trial)
    for (const int64_t E : kExperts)
      for (const int64_t K : {int64_t{1}, int64_t{6}, int64_t{11}})
        if (K <= E) {
          Keys<T>(E, 0.1, random, close).answers(K);
          answers += Keys<T>(E, 0.1, random, spread).answers(K);
        }
  CHECK(answers > 700);  // of 900: numbers that are spread are seldom so close
}

TEST_CASE("more experts than a key has bits for go without", "[largest]") {
  using I = IntOf<Native<float>>;
  const int64_t E = (int64_t{1} << kMostExpertBits) + 1;
  const std::vector<I> keys(static_cast<size_t>(E));
  I top[2], at[2];
  CHECK_FALSE(largest_packed(keys.data(), E, 2, splat<I>(kOut<float>), I{}, top, at));
}
