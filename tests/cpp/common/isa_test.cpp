// Instruction-set control and the table of kernels, through the public header.
#include <fulgurite/config.h>

#include <algorithm>
#include <stdexcept>

#include "catch.h"

namespace {

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

TEST_CASE("every set of the machine can be selected, and kernels follow") {
  const std::string before = fulgurite::get_isa();
  const std::vector<std::string> isas = fulgurite::available_isas();
  REQUIRE(isas.front() == "baseline");
  REQUIRE_FALSE(fulgurite::kernel_table().empty());
  for (const std::string& isa : isas) {
    fulgurite::set_isa(isa);
    CHECK(fulgurite::get_isa() == isa);
    for (const fulgurite::KernelReport& kernel : fulgurite::kernel_table()) {
      INFO(kernel.name << " under " << isa);
      CHECK((kernel.device == "cpu" || kernel.device == "cuda"));
      if (kernel.device != "cpu") continue;  // its variants are architectures of cards
      CHECK(contains(kernel.variants, "baseline"));
      CHECK(contains(kernel.variants, kernel.active));
      if (contains(kernel.variants, isa)) CHECK(kernel.active == isa);
    }
  }
  fulgurite::set_isa(before);
}

TEST_CASE("an unknown set is refused and changes nothing") {
  const std::string before = fulgurite::get_isa();
  CHECK_THROWS_AS(fulgurite::set_isa("sse9"), std::invalid_argument);
  CHECK_THROWS_WITH(fulgurite::set_isa("sse9"),
                    ContainsSubstring("baseline") && ContainsSubstring("'sse9'"));
  CHECK(fulgurite::get_isa() == before);
}
