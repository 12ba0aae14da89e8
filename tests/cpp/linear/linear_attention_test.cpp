// Linear attention against plain loops: decays, groups, packs, states, what is kept for the backward.
#include "attention_problem.h"
#include "catch.h"
#include "scratch.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
LinearAttentionTaskFn linear_attention;
LinearAttentionLayoutFn linear_attention_layout;
}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite

using namespace fulgurite;

namespace {

constexpr double kUnwritten = 99;

void check(const LinearProblem& q, int64_t range) {
  const LinearSizes& size = q.size;
  INFO("dtype " << int(q.dtype) << ", N " << size.N << ", D " << size.D << ", Dv " << size.Dv
                << ", decay " << int(q.options.decay) << ", range " << range);
  const int64_t outputs = size.B * size.H * size.N * size.Dv,
                states = q.sequences * size.H * size.D * size.Dv, C = q.columns();
  Elements out(q.dtype, outputs + 8, kUnwritten), state(q.sums, states + 8, kUnwritten),
      norm(q.sums, q.sequences * size.H * size.D, kUnwritten),
      kept(q.sums, q.kept_blocks() * size.H * size.D * C, kUnwritten),
      denominators(q.sums, size.B * size.H * size.N, kUnwritten);
  LinearAttentionParams p{};
  q.describe(p);
  p.out = out.data();
  p.state = state.data();
  p.norm = norm.data();
  p.kept = kept.data();
  p.denominators = q.options.normalize ? denominators.data() : nullptr;
  p.range = range;
  int64_t bytes = 0;
  FULGURITE_VARIANT::linear_attention_layout(p, &bytes);
  run(FULGURITE_VARIANT::linear_attention, p,
      q.sequences * size.H * ((size.Dv + range - 1) / range), bytes);
  for (int64_t i = 0; i < 8; ++i) {
    REQUIRE(out[outputs + i] == kUnwritten);
    REQUIRE(state[states + i] == kUnwritten);
  }
  for (int64_t s = 0; s < q.sequences; ++s)
    for (int64_t h = 0; h < size.H; ++h) {
      const LinearSpan& span = q.spans[static_cast<size_t>(s)];
      const LinearProblem::Head expected = q.head(s, h);
      const int64_t row = (span.batch * size.H + h) * size.N + span.start;
      for (int64_t i = 0; i < span.queries * size.Dv; ++i)
        REQUIRE(near(q.dtype, out[row * size.Dv + i], expected.out[static_cast<size_t>(i)], 2e-5));
      for (size_t i = 0; i < expected.denominators.size(); ++i)
        REQUIRE(
            near(q.sums, denominators[row + static_cast<int64_t>(i)], expected.denominators[i]));
      for (int64_t d = 0; d < size.D; ++d)
        for (int64_t c = 0; c < C; ++c) {
          const int64_t at = (s * size.H + h) * size.D + d;
          const double found = c < size.Dv ? state[at * size.Dv + c] : norm[at];
          REQUIRE(near(q.sums, found, expected.state[static_cast<size_t>(d * C + c)]));
          const int64_t block = q.options.causal ? span.block : s;
          const double first = kept[((block * size.H + h) * size.D + d) * C + c];
          if (!q.options.causal)
            REQUIRE(first == found);
          else if (q.options.started)
            REQUIRE(first == (c < size.Dv ? q.state(s, h, d, c) : q.norm(s, h, d, 0)));
          else
            REQUIRE(first == 0);
        }
    }
}

}  // namespace

TEST_CASE("linear attention of every kind") {
  for (const Dtype dtype : kDtypes)
    for_linear_calls([&](const LinearSizes& size, const LinearOptions& options) {
      for (const int64_t range : {32, 64}) check(LinearProblem(dtype, size, options), range);
    });
}

TEST_CASE("chunks and blocks cover every position once") {
  for (const bool per_feature : {false, true})
    for (const int64_t c : {0, 1, 3, 16, 24, 63, 64, 65, 100, 200, 256, 257, 300, 1000}) {
      const ChunkGrid grid = chunk_grid(per_feature, c);
      for (const int64_t length : {1, 15, 16, 64, 255, 256, 257, 1000, 2500}) {
        int64_t blocks = 0, of_block = 0;
        for (int64_t t = 0, end; t < length; t = end) {
          if (grid.starts_block(t)) {
            REQUIRE(grid.block_begin(blocks) == t);
            ++blocks;
            of_block = 0;
          }
          end = grid.chunk_end(t, length);
          REQUIRE((end > t && end <= length && end - t <= grid.chunk));
          REQUIRE(++of_block <= grid.chunks_of_block());
          if (grid.inner > 0) REQUIRE(t % c == 0);
          if (grid.held > 0) REQUIRE(t / c == (end - 1) / c);
        }
        REQUIRE(blocks == grid.blocks(length));
        REQUIRE(blocks <= length / grid.least_block() + 1);
      }
    }
}
