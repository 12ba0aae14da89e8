// Philox against the known answers of its authors' library, one counter at a time and in vectors; its words in element order.
#include "simd/philox.h"

#include "catch.h"

using namespace fulgurite;
namespace set = fulgurite::FULGURITE_VARIANT;
using set::Counters;
using set::kCounters;
using set::kCounterWords;

namespace {

struct KnownAnswer {
  uint32_t counter[4];
  PhiloxKey key;
  uint32_t words[4];
};

// Random123's kat_vectors, philox4x32 with 10 rounds.
constexpr KnownAnswer kKnownAnswers[] = {
    {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     {0xffffffff, 0xffffffff},
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     {0xa4093822, 0x299f31d0},
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}};

/// `high` fills the upper halves, which do not count.
template <class U>
void check_known_answers(uint64_t high) {
  for (const KnownAnswer& known : kKnownAnswers) {
    U c[4];
    for (int k = 0; k < 4; ++k) c[k] = U{} + (high << 32 | known.counter[k]);
    philox4x32(c[0], c[1], c[2], c[3], known.key);
    for (int k = 0; k < 4; ++k) {
      const U differs = c[k] ^ (U{} + known.words[k]);
      uint64_t lanes[sizeof(U) / 8];
      __builtin_memcpy(lanes, &differs, sizeof(U));
      for (const uint64_t lane : lanes) CHECK(lane == 0);
    }
  }
}

}  // namespace

TEMPLATE_TEST_CASE("philox gives its authors' words at every width", "[philox]", uint64_t,
                   (set::Vec<uint64_t, 2>), (set::Vec<uint64_t, 4>), (set::Vec<uint64_t, 8>)) {
  check_known_answers<TestType>(0);
  check_known_answers<TestType>(0x9e3779b9);
}

TEST_CASE("words are stored counter by counter", "[philox]") {
  const PhiloxKey key{7, 8};
  const uint64_t begin = 0xfffffffeu;  // the upper half of a counter is a word of its own
  const Counters index = set::counters_from(begin);
  Counters words[4] = {index, index >> 32, Counters{} + 5u, Counters{} + 6u};
  philox4x32(words[0], words[1], words[2], words[3], key);
  uint32_t stored[kCounterWords];
  set::store_words(stored, words);
  for (int c = 0; c < kCounters; ++c) {
    const uint64_t counter = begin + static_cast<uint64_t>(c);
    uint64_t w[4] = {counter, counter >> 32, 5, 6};
    philox4x32(w[0], w[1], w[2], w[3], key);
    for (int k = 0; k < 4; ++k) CHECK(stored[4 * c + k] == w[k]);
  }
}
