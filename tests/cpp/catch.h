// One include for Catch2 2 (Debian 12) and 3. Include it after torch's headers, whose CHECK it takes over.
#pragma once

#ifdef CHECK
#undef CHECK
#endif

#define CATCH_CONFIG_FAST_COMPILE
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using Catch::Approx;
#else
#include <catch2/catch.hpp>
namespace Catch::Matchers {
inline auto ContainsSubstring(const std::string& text) { return Contains(text); }
}  // namespace Catch::Matchers
#endif
using Catch::Matchers::ContainsSubstring;
