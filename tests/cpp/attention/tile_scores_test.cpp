// Which pairs are kept, asked for blocks, rows and tiles, beside ScoreRule::kept over random rules.
#include "attention/rules/tile_scores.h"

#include <limits>
#include <random>
#include <vector>

#include "catch.h"

using namespace fulgurite;

namespace {

/// A call with every kind of limit in it, some of them switched off.
struct RandomRule {
  std::mt19937 random;
  int64_t B = 2, H = 3, N, M;
  std::vector<uint8_t> mask, layout;
  std::vector<float> bias;
  ScoreRule rule{};

  explicit RandomRule(unsigned seed) : random(seed), N(1 + below(90)), M(1 + below(140)) {
    rule.M = M;
    rule.shift = coin() ? M - N : 0;
    rule.causal = coin();
    rule.window_left = coin() ? -1 : below(N + M);
    rule.window_right = coin() ? -1 : below(N + M);
    rule.sink_tokens = coin() ? 0 : below(9);
    rule.chunk_size = coin() ? 0 : 1 + below(40);
    rule.bias_dtype = Dtype::kFloat32;
    if (coin()) rule.mask = tensor(mask, N, M);
    if (coin()) rule.bias = tensor(bias, N, M);
    if (coin()) {
      rule.block_size = 1 + below(50);
      rule.layout = tensor(layout, (N - 1) / rule.block_size + 1, (M - 1) / rule.block_size + 1);
    }
  }

  int64_t below(int64_t n) { return static_cast<int64_t>(random() % static_cast<unsigned>(n)); }
  bool coin() { return random() % 2; }
  bool value(uint8_t) { return random() % 8 != 0; }
  float value(float) { return random() % 8 ? 1.5f : -std::numeric_limits<float>::infinity(); }

  /// Whole, or broadcast along some of its dimensions; mostly set, and here and there whole rows of pairs that are not.
  template <class T>
  ScoreTensor tensor(std::vector<T>& storage, int64_t rows, int64_t columns) {
    int64_t sizes[] = {B, H, rows, columns}, stride = 1;
    ScoreTensor t{};
    for (int d = 3; d >= 0; --d) {
      if (random() % 4 == 0) sizes[d] = 1;
      t.strides[d] = sizes[d] == 1 ? 0 : stride;
      stride *= sizes[d];
    }
    t.batches = sizes[0];
    storage.resize(static_cast<size_t>(stride));
    const bool constant = random() % 3 == 0;
    const T all = static_cast<T>(value(T{}));
    for (T& v : storage) v = constant ? all : static_cast<T>(value(T{}));
    t.data = storage.data();
    return t;
  }
};

TileState together(const BlockScores& scores, int64_t i0, int64_t i1, int64_t j0, int64_t j1,
                   int32_t lanes) {
  Seen mask{false, true};
  for (int32_t lane = 0; lane < lanes; ++lane) {
    const Seen own = scores.mask_seen(i0, i1, j0, j1, lane, lanes);
    mask.any |= own.any;
    mask.all &= own.all;
  }
  return tile_state(scores.outline(i0, i1, j0, j1), mask);
}

}  // namespace

TEST_CASE("bits of a word") {
  for (int begin = -40; begin <= 40; ++begin)
    for (int end = -40; end <= 40; ++end) {
      uint32_t expected = 0;
      for (int bit = 0; bit < 32; ++bit)
        if (bit >= begin && bit < end) expected |= 1u << bit;
      REQUIRE(bits_between(begin, end) == expected);
    }
}

TEST_CASE("rows and words of 32 pairs keep what the rule keeps") {
  int64_t kept = 0, hidden = 0;
  for (unsigned seed = 0; seed < 120; ++seed) {
    RandomRule r(seed);
    const int64_t b = r.below(r.B + 2), h = r.below(r.H), j0 = r.below(r.M);
    const int32_t columns = static_cast<int32_t>(1 + r.below(r.M - j0));
    const BlockScores scores(r.rule, b, h);
    for (int64_t i = 0; i < r.N; ++i) {
      const RowReach reach = scores.reach(i, j0, columns);
      for (int32_t c = 0; c < columns; ++c) REQUIRE(reach.has(c) == r.rule.reach(i).has(j0 + c));
      for (int32_t first = 0; first < columns; first += 32) {
        const int32_t count = std::min(32, columns - first);
        const uint32_t bits = scores.kept_bits(i, j0 + first, count, reach.bits(first)),
                       placed = scores.placed_bits(i, j0 + first, count, reach.bits(first));
        for (int32_t c = 0; c < 32; ++c) {
          const int64_t j = j0 + first + c;
          REQUIRE((placed >> c & 1) ==
                  (c < count && r.rule.reach(i).has(j) && r.rule.in_layout(b, h, i, j)));
          if (c < count && scores.has_mask())
            REQUIRE(scores.mask_keeps(i, j) ==
                    static_cast<const bool*>(r.rule.mask.data)[r.rule.mask.offset(b, h, i, j)]);
          const bool expected = c < count && r.rule.kept(b, h, i, j0 + first + c);
          REQUIRE((bits >> c & 1) == expected);
          (expected ? kept : hidden) += 1;
        }
      }
    }
  }
  REQUIRE(kept > 10000);
  REQUIRE(hidden > 10000);
}

TEST_CASE("a tile is what its outline and its lanes make of it") {
  int seen[3] = {};
  for (unsigned seed = 0; seed < 400; ++seed) {
    RandomRule r(seed);
    const int64_t b = r.below(r.B), h = r.below(r.H), i0 = r.below(r.N), j0 = r.below(r.M);
    const int64_t i1 = i0 + 1 + r.below(r.N - i0), j1 = j0 + 1 + r.below(r.M - j0);
    const BlockScores scores(r.rule, b, h);
    const TileState expected = r.rule.state(b, h, i0, i1, j0, j1);
    ++seen[static_cast<int>(expected)];
    for (const int32_t lanes : {1, 3, 32})
      REQUIRE(together(scores, i0, i1, j0, j1, lanes) == expected);
  }
  for (const int times : seen) REQUIRE(times > 20);
}

TEST_CASE("the tiles in reach are visited in order, and full ones said to be") {
  int seen[3] = {};
  for (unsigned seed = 0; seed < 400; ++seed) {
    RandomRule r(seed);
    const int64_t i0 = r.below(r.N), i1 = i0 + 1 + r.below(std::min<int64_t>(r.N - i0, 20));
    const int32_t columns = static_cast<int32_t>(1 + r.below(12));
    const TileReach tiles(r.rule, i0, i1, columns);
    int32_t visited = tiles.first();
    for (int32_t t = 0; t * columns < r.M; ++t) {
      const int64_t j0 = int64_t{t} * columns, j1 = std::min(r.M, j0 + columns);
      const bool met = r.rule.reach(i0, i1).meets(j0, j1);
      if (met) REQUIRE((visited == t && t < tiles.end()));
      if (visited != t || t >= tiles.end()) continue;
      const KeyReach first = r.rule.reach(i0), last = r.rule.reach(i1 - 1);
      const bool full =
          j0 + columns <= r.M && first.window.covers(j0, j1) && last.window.covers(j0, j1);
      const TileState state = tiles.state(t);
      REQUIRE((state == TileState::kFull) == full);
      if (met) REQUIRE(state != TileState::kSkip);
      ++seen[static_cast<int>(state)];
      visited = tiles.next(t);
    }
    REQUIRE(visited >= tiles.end());
  }
  REQUIRE(seen[static_cast<int>(TileState::kPartial)] > 200);
  REQUIRE(seen[static_cast<int>(TileState::kFull)] > 200);
}
