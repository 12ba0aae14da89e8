#include "cuda/host/settings.h"

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "cuda/host/instrument.h"

namespace cux::host {
namespace {

// Table 30 of the CUDA C++ programming guide; multiprocessors of an A100, an A40, an L40 and an H100.
constexpr Card kCards[] = {{80, 108, 163 << 10, 48 << 10},
                           {86, 84, 99 << 10, 48 << 10},
                           {89, 142, 99 << 10, 48 << 10},
                           {90, 132, 227 << 10, 48 << 10}};

[[noreturn]] void refuse(const char* variable, const char* expected, std::string_view value) {
  std::fprintf(stderr, "cux: %s: expected %s, got %.*s\n", variable, expected,
               static_cast<int>(value.size()), value.data());
  std::exit(2);
}

template <class Number>
Number number(const char* variable, const char* expected, std::string_view text) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) refuse(variable, expected, text);
  return value;
}

void read_schedule(Settings& s, std::string_view text) {
  constexpr const char* expected = "asc, desc, random:SEED or all";
  constexpr std::string_view random = "random:";
  if (text == "asc") {
    s.schedule.order = Order::kAscending;
  } else if (text == "desc") {
    s.schedule.order = Order::kDescending;
  } else if (text == "all") {
    s.every_schedule = true;
  } else if (text.starts_with(random)) {
    s.schedule.order = Order::kRandom;
    s.schedule.seed = number<uint64_t>("CUX_SCHEDULE", expected, text.substr(random.size()));
  } else {
    refuse("CUX_SCHEDULE", expected, text);
  }
}

bool choose(Settings& s, int architecture) {
  for (const Card& known : kCards)
    if (known.architecture == architecture) {
      s.card = known;
      return true;
    }
  return false;
}

Settings from_environment() {
  Settings s;
  s.check = is_instrumented();
  s.card = kCards[0];
  const auto given = [](const char* variable, auto&& read) {
    if (const char* text = std::getenv(variable)) read(std::string_view(text));
  };
  given("CUX_SCHEDULE", [&](std::string_view text) { read_schedule(s, text); });
  given("CUX_ASYNC", [&](std::string_view text) {
    if (text != "late" && text != "early") refuse("CUX_ASYNC", "late or early", text);
    s.schedule.copies_early = text == "early";
  });
  given("CUX_PREEMPT", [&](std::string_view text) {
    s.schedule.preempt = number<unsigned>("CUX_PREEMPT", "a number of accesses", text);
  });
  given("CUX_ARCH", [&](std::string_view text) {
    constexpr const char* expected = "80, 86, 89 or 90";
    if (!choose(s, number<int>("CUX_ARCH", expected, text))) refuse("CUX_ARCH", expected, text);
  });
  given("CUX_CHECK", [&](std::string_view text) {
    if (text != "0" && text != "1") refuse("CUX_CHECK", "0 or 1", text);
    s.check = text == "1";
  });
  given("CUX_COUNTS", [&](std::string_view text) { s.counts_file = text; });
  return s;
}

}  // namespace

std::string to_string(const Schedule& s) {
  std::string text = s.order == Order::kAscending    ? "asc"
                     : s.order == Order::kDescending ? "desc"
                                                     : "random:" + std::to_string(s.seed);
  text += s.copies_early ? ", copies early" : ", copies late";
  if (s.preempt) text += ", preempted every " + std::to_string(s.preempt) + " accesses";
  return text;
}

std::vector<Schedule> all_schedules() {
  return {{Order::kAscending, 1, false, 0},
          {Order::kDescending, 1, true, 0},
          {Order::kRandom, 1, false, 0},
          {Order::kRandom, 2, true, 7}};
}

Settings& settings() {
  static Settings s = from_environment();
  return s;
}
const Card& card() { return settings().card; }
bool choose_card(int architecture) { return choose(settings(), architecture); }

}  // namespace cux::host
