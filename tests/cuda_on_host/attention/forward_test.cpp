// The forward on tensor cores beside float64, at sizes that cross every edge of its tiles, in every schedule.
#include "attention/cuda/kernels/forward.cuh"

#include <algorithm>

#include "problem.h"

namespace {

using namespace attention_test;
using cuda::FmaForward;
using cuda::MmaForward;

bool all_right = true;

/// Weights are rounded to T before they meet the values, sums of float32 take a tenth of that.
template <class T>
void expect_right(const char* name, const Problem<T>& problem) {
  const AttentionCudaParams& p = problem.p;
  double worst = 0, worst_lse = 0;
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t h = 0; h < p.Hq; ++h)
      for (int64_t i = 0; i < p.N; ++i) {
        const auto row = problem.row_with_out(b, h, i);
        const auto at = static_cast<size_t>((b * p.Hq + h) * p.N + i);
        const double lse = double{problem.lse[at]};
        if (lse != row.lse)
          worst_lse = std::max(worst_lse, std::fabs(lse - row.lse) / (1 + std::fabs(row.lse)));
        if (!(std::isnan(lse) == std::isnan(row.lse))) worst_lse = INFINITY;
        for (int64_t d = 0; d < p.Dv; ++d) {
          const auto of = static_cast<size_t>(d);
          const double got = double{number(problem.out[at * static_cast<size_t>(p.Dv) + of])};
          const double allowed =
              kRounding<T> * (row.size[of] + std::fabs(row.out[of])) * 1.3 + 1e-7;
          if (std::isfinite(row.out[of]))
            worst = std::max(
                worst, std::isfinite(got) ? std::fabs(got - row.out[of]) / allowed : INFINITY);
          else if (std::isfinite(got))
            worst = INFINITY;
        }
      }
  const double of_lse = 4e-6 + 3e-7 * p.M;
  if (worst <= 1 && worst_lse <= of_lse) return;
  std::printf("FAILED %s: out is off by %g times what rounding allows, lse by %g\n", name, worst,
              worst_lse);
  all_right = false;
}

template <class Tile, bool kPlain>
void run(const char* name, const Call& call) {
  using T = typename Tile::T;
  Problem<T> problem(call);
  AttentionCudaParams& p = problem.p;
  p.wide = cuda::has_wide_rows(p);
  if (const cux::Error error = cuda::launch_forward<Tile, kPlain>(p, nullptr)) {
    std::printf("FAILED %s: %s\n", name, error);
    all_right = false;
    return;
  }
  expect_right(name, problem);
}

// As small as tiles come: two warps of 32 rows, 32 keys.
template <class T, int kD>
using Small = MmaForward<T, kD, kD, 2, 2, 32>;
template <int kD>
using SmallFloat = FmaForward<kD, 4, 32>;

void plain() {
  run<MmaForward<BFloat16, 64, 64, 4, 2, 64>, true>("plain", {.N = 131, .M = 67});
  run<Small<Half, 64>, true>("causal", {.N = 70, .M = 99, .causal = true});
  run<Small<BFloat16, 64>, true>("rows without keys", {.N = 99, .M = 70, .causal = true});
  run<Small<BFloat16, 64>, true>("blocks without keys", {.N = 150, .M = 30, .causal = true});
  run<Small<BFloat16, 64>, true>("no keys", {.N = 40, .M = 0, .sink = true});
  run<Small<BFloat16, 64>, true>("causal from the top left",
                                 {.N = 99, .M = 70, .causal = true, .bottom_right = false});
  run<Small<Half, 64>, true>("window and sink tokens", {.B = 2,
                                                        .Hq = 2,
                                                        .Hkv = 2,
                                                        .N = 130,
                                                        .M = 130,
                                                        .causal = true,
                                                        .window_left = 20,
                                                        .sink_tokens = 5});
  run<Small<BFloat16, 64>, true>("window to the right",
                                 {.N = 70, .M = 70, .window_left = 9, .window_right = 17});
  run<Small<BFloat16, 64>, true>("chunks", {.N = 70, .M = 99, .causal = true, .chunk_size = 24});
  run<Small<BFloat16, 64>, true>("sink", {.N = 33, .M = 40, .causal = true, .sink = true});
  run<Small<BFloat16, 32>, true>("narrower",
                                 {.Hq = 4, .Hkv = 2, .N = 65, .M = 33, .D = 24, .Dv = 32});
  run<Small<Half, 80>, true>("72 as 80", {.N = 40, .M = 50, .D = 72, .Dv = 72});
  run<Small<BFloat16, 96>, true>("96", {.N = 40, .M = 50, .D = 96, .Dv = 96});
  run<MmaForward<BFloat16, 192, 128, 4, 1, 64>, true>("192 and 128",
                                                      {.N = 70, .M = 70, .D = 192, .Dv = 128});
  run<MmaForward<Half, 256, 256, 4, 1, 64>, true>("256",
                                                  {.Hq = 1, .N = 60, .M = 70, .D = 256, .Dv = 256});
  run<Small<BFloat16, 64>, true>("hidden infinities",
                                 {.N = 40, .M = 40, .causal = true, .infinite_key = true});
  run<Small<BFloat16, 64>, true>("large scores", {.Hq = 1, .N = 33, .M = 40, .query_size = 1e12});
  run<Small<Half, 64>, true>("spaced rows", {.N = 40, .M = 40, .padding = 8});
}

void general() {
  run<Small<BFloat16, 64>, false>("mask", {.B = 2, .N = 70, .M = 70, .mask = true});
  run<MmaForward<Half, 64, 64, 2, 1, 64>, false>(
      "mask of keys", {.B = 2, .N = 40, .M = 99, .causal = true, .mask_of_keys = true});
  run<MmaForward<BFloat16, 64, 64, 4, 1, 32>, false>("mask of strips",
                                                     {.N = 40, .M = 70, .mask = true});
  run<Small<BFloat16, 64>, false>("layout", {.N = 130, .M = 130, .block_size = 20, .layout = true});
  run<Small<BFloat16, 64>, false>(
      "bias", {.B = 3, .Hq = 2, .N = 40, .M = 45, .bias = Call::kOwnType, .bias_batches = 3});
  run<Small<Half, 64>, false>(
      "wide bias",
      {.B = 2, .N = 40, .M = 45, .causal = true, .slopes = true, .bias = Call::kFloat32});
  run<Small<BFloat16, 64>, false>("a bias of all pairs",
                                  {.N = 33, .M = 33, .bias = Call::kSame, .bias_size = 3e38});
  run<Small<BFloat16, 64>, false>(
      "slopes", {.N = 70, .M = 40, .causal = true, .softcap = 2, .sink = true, .slopes = true});
  run<Small<Half, 64>, false>("dropout",
                              {.B = 2, .N = 40, .M = 70, .causal = true, .dropout_p = 0.3});
  run<Small<BFloat16, 64>, false>(
      "relu2", {.N = 40, .M = 40, .causal = true, .score_scale = 0.5, .score = ScoreKind::kRelu2});
  run<Small<BFloat16, 64>, false>("laplace",
                                  {.N = 40, .M = 40, .causal = true, .score = ScoreKind::kLaplace});
  run<Small<BFloat16, 64>, false>("negative scale", {.N = 40, .M = 40, .scale = -0.3});
  run<Small<BFloat16, 64>, false>("rows of odd bytes",
                                  {.N = 40, .M = 40, .D = 50, .Dv = 37, .padding = 3});
  run<Small<BFloat16, 64>, false>("columns apart",
                                  {.N = 33, .M = 33, .D = 40, .Dv = 40, .column_stride = 2});
  run<Small<BFloat16, 64>, false>("hidden infinities with all there is", {.N = 40,
                                                                          .M = 40,
                                                                          .causal = true,
                                                                          .sink_tokens = 1,
                                                                          .softcap = 3,
                                                                          .dropout_p = 0.2,
                                                                          .sink = true,
                                                                          .slopes = true,
                                                                          .mask = true,
                                                                          .bias = Call::kFloat32,
                                                                          .infinite_key = true});
  run<Small<BFloat16, 64>, false>(
      "relu2 beside hidden infinities",
      {.N = 40, .M = 40, .causal = true, .score = ScoreKind::kRelu2, .infinite_key = true});
}

void float32() {
  run<FmaForward<64, 8, 32>, false>("float32", {.N = 131, .M = 67});
  run<SmallFloat<64>, false>("float32, causal", {.N = 70, .M = 99, .causal = true, .sink = true});
  run<SmallFloat<128>, false>("float32, 100 as 128", {.N = 40, .M = 70, .D = 100, .Dv = 128});
  run<FmaForward<256, 4, 32>, false>(
      "float32, 256", {.Hq = 1, .N = 33, .M = 40, .D = 256, .Dv = 256, .mask = true});
  run<SmallFloat<64>, false>("float32 with all there is", {.N = 70,
                                                           .M = 70,
                                                           .causal = true,
                                                           .sink_tokens = 1,
                                                           .block_size = 8,
                                                           .softcap = 3,
                                                           .dropout_p = 0.2,
                                                           .sink = true,
                                                           .slopes = true,
                                                           .mask = true,
                                                           .layout = true,
                                                           .bias = Call::kFloat32,
                                                           .infinite_key = true});
  run<SmallFloat<64>, false>("float32, rows of odd bytes",
                             {.N = 40, .M = 40, .D = 50, .Dv = 37, .padding = 3});
  run<SmallFloat<64>, false>("float32, laplace", {.N = 40, .M = 40, .score = ScoreKind::kLaplace});
}

}  // namespace

int main() {
  auto& settings = cux::host::settings();
  settings.every_schedule = settings.check;
  plain();
  general();
  float32();
  std::printf("%s\n", all_right ? "all rows are right" : "");
  return !all_right;
}
