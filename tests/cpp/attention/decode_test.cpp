// Few queries over caches, contiguous and paged, streamed and packed, in several splits, against plain loops.
#include <numeric>
#include <vector>

#include "attention/cpu/kernels/decode.h"
#include "catch.h"
#include "stored.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
DecodeTaskFn attention_decode, attention_decode_merge;
DecodeLayoutFn attention_decode_layout;
}  // namespace FULGURITE_VARIANT

namespace {

constexpr int64_t kBatch = 2, kHq = 4, kHkv = 2, kGroup = 2, kD = 9, kDv = 5, kPage = 20,
                  kPages = 32, kMost = kPage * kPages, kSplit = 2 * kKeyBlock;
constexpr int64_t kLengths[kBatch] = {600, 37};

int64_t splits_of(int64_t b) { return (kLengths[b] + kSplit - 1) / kSplit; }

struct Decode {
  int64_t N;
  Rows query, key = numbers<Rows>(kBatch * kHkv * kMost * kD, 2),
              value = numbers<Rows>(kBatch * kHkv * kMost * kDv, 3);
  std::vector<int32_t> table = std::vector<int32_t>(kBatch * kPages);
  Rows out;
  Sums lse, sink{0.4, -1, 2, 0}, acc, max, sum;
  std::vector<Sequence> sequences;
  DecodeParams d{};

  Decode(int64_t queries, bool paged) : N(queries) {
    query = numbers<Rows>(kBatch * kHq * N * kD, 1);
    out = Rows(kBatch * kHq * N * kDv);
    lse = Sums(kBatch * kHq * N);
    AttentionParams& p = d.attention;
    p.dtype = kDtype;
    p.Hq = kHq;
    p.Hkv = kHkv;
    p.group = kGroup;
    p.D = kD;
    p.Dv = kDv;
    p.scale = p.score_unit = 0.6;
    p.plain_scores = true;
    p.score_scale = 1;
    p.rule.causal = true;
    p.rule.window_left = 300;
    p.rule.window_right = -1;
    p.rule.sink_tokens = 5;
    p.bottom_right = true;
    p.query = {query.data(), {kHq * N * kD, N * kD, kD, 1}};
    p.sink = sink.data();
    p.out = {out.data(), {kHq * N * kDv, N * kDv, kDv}};
    p.lse = {lse.data(), {kHq * N, N, 1}};
    for (int64_t b = 0; b < kBatch; ++b) {
      sequences.push_back({0, N, 0, kLengths[b], N, b, p.key_blocks, 0, 0});
      p.key_blocks += splits_of(b);
    }
    p.sequences = sequences.data();
    p.B = p.query_blocks = kBatch;
    // Pages of both sequences lie mixed, from the last to the first.
    for (size_t page = 0; page < table.size(); ++page)
      table[page] = static_cast<int32_t>(table.size() - 1 - page);
    const int64_t rows = paged ? kPage : kMost;
    p.key = {key.data(), {kHkv * rows * kD, rows * kD, kD, 1}};
    p.value = {value.data(), {kHkv * rows * kDv, rows * kDv, kDv, 1}};
    d.page_table = paged ? table.data() : nullptr;
    d.pages = kPages;
    d.page = rows;
    d.split_keys = kSplit;
    d.rows = kGroup * N;
  }

  void run() {
    DecodeLayout layout{};
    FULGURITE_VARIANT::attention_decode_layout(d, &layout);
    const int64_t tasks = d.attention.key_blocks * kHkv;
    acc = Sums(static_cast<size_t>(tasks * d.rows * layout.acc_row));
    max = sum = Sums(static_cast<size_t>(tasks * d.rows));
    d.acc = acc.data();
    d.max = max.data();
    d.sum = sum.data();
    std::vector<char> memory(static_cast<size_t>(layout.scratch) + (1 << 16));
    void* const scratch =
        reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
    for (int64_t task = tasks; task-- > 0;) FULGURITE_VARIANT::attention_decode(d, task, scratch);
    for (int64_t task = 0; task < kBatch * kHkv; ++task)
      FULGURITE_VARIANT::attention_decode_merge(d, task, scratch);
  }

  /// Where key j of a sequence and head lies, in rows of a cache.
  int64_t row(int64_t b, int64_t head, int64_t j) const {
    if (!d.page_table) return (b * kHkv + head) * kMost + j;
    return (table[b * kPages + j / kPage] * kHkv + head) * kPage + j % kPage;
  }

  void check(int64_t b, int64_t h, int64_t i) const {
    const int64_t at = (b * kHq + h) * N + i, center = i + kLengths[b] - N;
    double total = std::exp(sink[h]);
    Numbers expected(kDv);
    for (int64_t j = 0; j <= center; ++j) {
      if (center - 300 > j && j >= 5) continue;
      const int64_t from = row(b, h / kGroup, j);
      double product = 0;
      for (int64_t x = 0; x < kD; ++x) product += query[at * kD + x] * key[from * kD + x];
      const double weight = std::exp(0.6 * product);
      total += weight;
      for (int64_t x = 0; x < kDv; ++x) expected[x] += weight * value[from * kDv + x];
    }
    REQUIRE(near(lse[at], std::log(total)));
    for (int64_t x = 0; x < kDv; ++x) REQUIRE(near(out[at * kDv + x], expected[x] / total));
  }
};

}  // namespace

TEST_CASE("queries over a cache: one streams it, many have it packed") {
  Decode decode(GENERATE(int64_t{1}, int64_t{3}, int64_t{7}), GENERATE(false, true));
  decode.run();
  for (int64_t b = 0; b < kBatch; ++b)
    for (int64_t h = 0; h < kHq; ++h)
      for (int64_t i = 0; i < decode.N; ++i) decode.check(b, h, i);
}

}  // namespace fulgurite
