// The backward's kernels beside float64, at sizes that cross every edge of their tiles, in every schedule.
#include <algorithm>

#include "attention/cuda/kernels/backward_bias.cuh"
#include "attention/cuda/kernels/backward_key.cuh"
#include "attention/cuda/kernels/backward_query.cuh"
#include "attention/cuda/kernels/delta.cuh"
#include "problem.h"

namespace {

using namespace attention_test;
using cuda::FmaBackward;
using cuda::MmaBackward;

bool all_right = true;

/// Sums of products with the sums of their sizes.
struct Expected {
  std::vector<double> value, size;
  explicit Expected(size_t n) : value(n), size(n) {}
  void add(size_t at, double x, double y, double error) {
    value[at] += x * y;
    size[at] += (std::fabs(x) + error) * std::fabs(y);
  }
};

template <class T>
class Gradients {
 public:
  Gradients(const Problem<T>& problem, unsigned seed)
      : problem_(problem),
        query(count(p().Hq, p().N, p().D)),
        key(count(p().Hkv, p().M, p().D)),
        value(count(p().Hkv, p().M, p().Dv)),
        sink(static_cast<size_t>(p().Hq)),
        bias(bias_elements()),
        grad_out_(count(p().Hq, p().N, p().Dv)),
        grad_lse_(count(p().Hq, p().N, 1)) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < grad_out_.size(); ++i) assign(grad_out_[i], normal(random));
    for (size_t i = 0; i < grad_lse_.size(); ++i) grad_lse_[i] = normal(random);
    if (problem.call.infinite_query) assign(grad_out_[static_cast<size_t>(3 * p().Dv)], INFINITY);
    cux::host::written_by_host(grad_out_.data(), grad_out_.size() * sizeof(T));
    cux::host::written_by_host(grad_lse_.data(), grad_lse_.size() * sizeof(float));
    grad_out = {grad_out_.data(), {p().Hq * p().N * p().Dv, p().N * p().Dv, p().Dv, 1}};
    grad_lse = {grad_lse_.data(), {p().Hq * p().N, p().N, 1, 0}};
  }

  /// out and lse as a forward leaves them, and every gradient, in float64.
  void expect() {
    for (int64_t b = 0; b < p().B; ++b)
      for (int64_t h = 0; h < p().Hq; ++h)
        for (int64_t i = 0; i < p().N; ++i) expect_row(b, h, i);
    cux::host::written_by_host(problem_.out.data(), problem_.out.size() * sizeof(T));
    cux::host::written_by_host(problem_.lse.data(), problem_.lse.size() * sizeof(float));
  }

 private:
  const AttentionCudaParams& p() const { return problem_.p; }
  size_t count(int64_t heads, int64_t rows, int64_t width) const {
    return static_cast<size_t>(p().B * heads * rows * width);
  }
  size_t bias_elements() const {
    const Call& c = problem_.call;
    return c.bias ? static_cast<size_t>(c.bias_batches * (c.one_bias_head ? 1 : c.Hq) *
                                        (c.one_bias_row ? 1 : c.N) * (c.one_bias_column ? 1 : c.M))
                  : 0;
  }
  size_t at(int64_t heads, int64_t rows, int64_t b, int64_t h, int64_t i) const {
    return static_cast<size_t>((b * heads + h) * rows + i);
  }

  void expect_row(int64_t b, int64_t h, int64_t i) {
    const int64_t D = p().D, Dv = p().Dv, hk = h / p().group;
    const auto row = problem_.row_with_out(b, h, i);
    const size_t own = at(p().Hq, p().N, b, h, i);
    problem_.lse[own] = static_cast<float>(row.lse);
    const bool softmax = p().score == ScoreKind::kSoftmax;
    double delta = -double{grad_lse_[own]};
    for (int64_t d = 0; d < Dv; ++d) {
      T& out = problem_.out[own * static_cast<size_t>(Dv) + static_cast<size_t>(d)];
      assign(out, static_cast<float>(row.out[static_cast<size_t>(d)]));
      delta += double{number(out)} * double{problem_.at(grad_out, b, h, i, d)};
    }
    if (!softmax || row.lse == -INFINITY) delta = 0;
    const double p_sink = std::exp(problem_.sink(h) - row.lse);
    if (problem_.sink(h) != -INFINITY) sink.add(static_cast<size_t>(h), -p_sink, delta, 0);
    for (int64_t j = 0; j < p().M; ++j) {
      if (!p().rule.kept(b, h, i, j)) continue;
      double grad = 0, slope = 1, size = 0;
      for (int64_t d = 0; d < Dv; ++d) {
        const double x =
            double{problem_.at(grad_out, b, h, i, d)} * double{problem_.at(p().value, b, hk, j, d)};
        grad += x;
        size += std::fabs(x);
      }
      const double keep = problem_.keep_factor(b, h, i, j), s = problem_.score(b, h, i, j, &slope),
                   weight = row.weights[static_cast<size_t>(j)];
      double ds = softmax ? weight * (grad * keep - delta) : problem_.activated_slope(s) * grad;
      // What float32 sums, and exp of them, cost.
      const double error = 4e-5 * (std::fabs(weight) * (size + std::fabs(delta)) + std::fabs(ds));
      if (p().rule.bias.data)
        bias.add(static_cast<size_t>(p().rule.bias.offset(b, h, i, j)), ds, 1, error);
      ds *= slope * p().scale;
      const size_t key_row = at(p().Hkv, p().M, b, hk, j);
      for (int64_t d = 0; d < D; ++d) {
        const auto of = static_cast<size_t>(d);
        query.add(own * static_cast<size_t>(D) + of, ds, double{problem_.at(p().key, b, hk, j, d)},
                  error);
        key.add(key_row * static_cast<size_t>(D) + of, ds,
                double{problem_.at(p().query, b, h, i, d)}, error);
      }
      for (int64_t d = 0; d < Dv; ++d)
        value.add(key_row * static_cast<size_t>(Dv) + static_cast<size_t>(d), weight * keep,
                  double{problem_.at(grad_out, b, h, i, d)}, 0);
    }
  }

  const Problem<T>& problem_;

 public:
  Expected query, key, value, sink, bias;
  Tensor4 grad_out{}, grad_lse{};

 private:
  const Array<T> grad_out_;
  const Array<float> grad_lse_;
};

template <class T>
void compare(const char* name, const char* what, const Array<T>& got, const Expected& expected,
             double rounding) {
  double worst = 0;
  for (size_t i = 0; i < expected.value.size(); ++i) {
    const double allowed =
        rounding * 1.3 * (expected.size[i] + std::fabs(expected.value[i])) + 1e-6;
    const double x = double{number(got[i])};
    if (!std::isfinite(expected.value[i]) && !std::isfinite(x)) continue;
    const double error = std::fabs(x - expected.value[i]) / allowed;
    worst = std::isfinite(error) ? std::max(worst, error) : INFINITY;
  }
  if (worst <= 1) return;
  std::printf("FAILED %s: %s is off by %g times what rounding allows\n", name, what, worst);
  all_right = false;
}

/// In the bias's own type S.
template <class S, class Tile>
void check_bias(const char* name, AttentionCudaBackward p, const Call& call,
                const Expected& expected) {
  const Array<S> grad(expected.value.size());
  p.grad_bias = grad.data();
  const int64_t shape[] = {call.bias_batches, call.one_bias_head ? 1 : call.Hq,
                           call.one_bias_row ? 1 : call.N, call.one_bias_column ? 1 : call.M};
  std::copy(shape, shape + 4, p.bias_shape);
  if (const cux::Error error = cuda::launch_backward_bias<Tile>(p, nullptr)) {
    std::printf("FAILED %s: %s\n", name, error);
    all_right = false;
    return;
  }
  compare(name, "grad_bias", grad, expected, kRounding<S>);
}

template <class QueryTile, class KeyTile, bool kPlain>
void run(const char* name, const Call& call) {
  using T = typename QueryTile::T;
  constexpr bool kPowers = cuda::kInPowers<T, kPlain>;
  Problem<T> problem(call);
  Gradients<T> gradients(problem, 5);
  gradients.expect();
  AttentionCudaBackward p{};
  static_cast<AttentionCudaParams&>(p) = problem.p;
  p.grad_out = gradients.grad_out;
  p.grad_lse = gradients.grad_lse;
  p.wide = cuda::has_wide_rows(p);
  const auto rows = static_cast<size_t>(p.B * p.Hq * p.N);
  const Array<float> base(rows), fine(rows), delta(rows), sink(static_cast<size_t>(p.Hq));
  const Array<T> query(gradients.query.value.size()), key(gradients.key.value.size()),
      value(gradients.value.value.size());
  p.base = base.data();
  p.fine = fine.data();
  p.delta = delta.data();
  p.grad_sink = sink.data();
  p.grad_query = {query.data(), {p.Hq * p.N * p.D, p.N * p.D, p.D}};
  p.grad_key = {key.data(), {p.Hkv * p.M * p.D, p.M * p.D, p.D}};
  p.grad_value = {value.data(), {p.Hkv * p.M * p.Dv, p.M * p.Dv, p.Dv}};
  cux::Error error = cuda::launch_delta<T, kPowers>(p, nullptr);
  if (!error) error = cuda::launch_backward_query<QueryTile, kPlain>(p, nullptr);
  if (!error) error = cuda::launch_backward_key<KeyTile, kPlain>(p, nullptr);
  if (!error && p.sink) error = cuda::launch_grad_sink<kPowers>(p, nullptr);
  if (error) {
    std::printf("FAILED %s: %s\n", name, error);
    all_right = false;
    return;
  }
  compare(name, "grad_query", query, gradients.query, kRounding<T>);
  compare(name, "grad_key", key, gradients.key, kRounding<T>);
  compare(name, "grad_value", value, gradients.value, kRounding<T>);
  if constexpr (!kPlain) {
    if (call.bias == Call::kOwnType) check_bias<T, QueryTile>(name, p, call, gradients.bias);
    if (call.bias == Call::kFloat32) check_bias<float, QueryTile>(name, p, call, gradients.bias);
  }
  if (p.sink) compare(name, "grad_sink", sink, gradients.sink, 1e-4);
}

// As small as tiles come.
template <class T, bool kPlain>
void run_small(const char* name, const Call& call) {
  run<MmaBackward<T, 64, 64, 2, 2, 32>, MmaBackward<T, 64, 64, 2, 2, 32>, kPlain>(name, call);
}

void plain() {
  run<MmaBackward<BFloat16, 64, 64, 4, 2, 64>, MmaBackward<BFloat16, 64, 64, 4, 2, 32>, true>(
      "plain", {.N = 131, .M = 140});
  run_small<Half, true>("causal", {.N = 70, .M = 99, .causal = true});
  run_small<BFloat16, true>("rows without keys", {.Hq = 1, .N = 140, .M = 40, .causal = true});
  run_small<BFloat16, true>("keys without rows",
                            {.Hq = 1, .N = 40, .M = 140, .causal = true, .bottom_right = false});
  run_small<Half, true>("window and sink tokens", {.B = 2,
                                                   .Hq = 4,
                                                   .Hkv = 2,
                                                   .N = 100,
                                                   .M = 100,
                                                   .causal = true,
                                                   .window_left = 20,
                                                   .sink_tokens = 5,
                                                   .sink = true});
  run_small<BFloat16, true>("hidden infinities",
                            {.N = 40, .M = 40, .causal = true, .infinite_key = true});
  run_small<BFloat16, true>("a query that is not finite",
                            {.N = 40, .M = 40, .causal = true, .infinite_query = true});
  run_small<BFloat16, true>("chunks",
                            {.Hq = 1, .N = 70, .M = 99, .causal = true, .chunk_size = 24});
  run<MmaBackward<BFloat16, 80, 80, 4, 1, 64>, MmaBackward<BFloat16, 80, 80, 4, 1, 32>, true>(
      "72 as 80", {.Hq = 1, .N = 40, .M = 50, .D = 72, .Dv = 72});
  run<MmaBackward<Half, 192, 128, 2, 1, 32>, MmaBackward<Half, 192, 128, 2, 1, 32>, true>(
      "192 and 128", {.Hq = 1, .N = 40, .M = 50, .D = 192, .Dv = 128});
}

void general() {
  run_small<BFloat16, false>("mask", {.B = 2, .N = 70, .M = 70, .mask = true});
  run<MmaBackward<Half, 64, 64, 2, 1, 64>, MmaBackward<Half, 64, 64, 2, 1, 32>, false>(
      "strips", {.B = 2,
                 .N = 40,
                 .M = 70,
                 .causal = true,
                 .softcap = 2,
                 .slopes = true,
                 .mask_of_keys = true});
  run_small<BFloat16, false>(
      "layout and dropout",
      {.N = 100, .M = 100, .block_size = 20, .dropout_p = 0.3, .layout = true});
  run_small<BFloat16, false>("bias and sink",
                             {.N = 40, .M = 45, .sink = true, .bias = Call::kOwnType});
  run_small<BFloat16, false>(
      "relu2", {.N = 40, .M = 40, .causal = true, .score_scale = 0.5, .score = ScoreKind::kRelu2});
  run_small<BFloat16, false>("laplace",
                             {.N = 40, .M = 40, .causal = true, .score = ScoreKind::kLaplace});
  run_small<BFloat16, false>("rows of odd bytes",
                             {.N = 40, .M = 40, .D = 50, .Dv = 37, .padding = 3});
}

void float32() {
  run<FmaBackward<64, 4, 4, 32>, FmaBackward<64, 4, 4, 32>, false>(
      "float32", {.N = 70, .M = 99, .causal = true, .sink = true});
  run<FmaBackward<64, 4, 2, 32>, FmaBackward<64, 4, 2, 32>, false>("float32 with all there is",
                                                                   {.N = 50,
                                                                    .M = 50,
                                                                    .D = 40,
                                                                    .Dv = 56,
                                                                    .causal = true,
                                                                    .sink_tokens = 1,
                                                                    .block_size = 8,
                                                                    .softcap = 3,
                                                                    .dropout_p = 0.2,
                                                                    .sink = true,
                                                                    .slopes = true,
                                                                    .mask = true,
                                                                    .layout = true,
                                                                    .bias = Call::kFloat32});
}

}  // namespace

int main() {
  auto& settings = cux::host::settings();
  settings.every_schedule = settings.check;
  plain();
  general();
  float32();
  std::printf("%s\n", all_right ? "all gradients are right" : "");
  return !all_right;
}
