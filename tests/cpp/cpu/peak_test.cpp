// The products that the machine's peak is measured with: they run, and are counted, in every type of the set.
#include "cpu/kernels/peak.h"

#include "catch.h"
#include "elements.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
PeakFn product_peak;
}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite

using namespace fulgurite;

TEST_CASE("operations are counted by the round") {
  for (const Dtype dtype : kDtypes) {
    INFO("dtype " << int(dtype));
    const auto count = [dtype](int64_t rounds) {
      return FULGURITE_VARIANT::product_peak({dtype, rounds});
    };
    const double one = count(1);
    CHECK(
        one >=
        2 * 4);  // a multiplication and an addition in each lane of the narrowest vector, at least
    CHECK(std::fmod(one, 2) == 0);
    for (const int64_t rounds : {0, 3, 17, 1000})
      CHECK(count(rounds) == static_cast<double>(rounds) * one);
  }
}
