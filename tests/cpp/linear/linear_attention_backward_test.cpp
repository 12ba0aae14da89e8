// Gradients of linear attention, from outputs, last states and norms, against slopes of plain loops.
#include "attention_problem.h"
#include "catch.h"
#include "scratch.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
LinearAttentionTaskFn linear_attention;
LinearAttentionLayoutFn linear_attention_layout;
LinearAttentionBackwardTaskFn linear_attention_backward;
LinearAttentionBackwardLayoutFn linear_attention_backward_layout;
}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite

using namespace fulgurite;
using namespace fulgurite::FULGURITE_VARIANT;

namespace {

struct Backward {
  LinearProblem q;
  const LinearSizes& size = q.size;
  int64_t heads = size.B * size.H, key_heads = size.B * size.Hk,
          states = q.sequences * size.H * size.D,
          units = (size.D + kFeatureUnit - 1) / kFeatureUnit;
  TestHeads grad_out, grad_state, grad_norm;
  Elements query{q.dtype, key_heads * size.N * size.D}, key{q.dtype, key_heads * size.N * size.D},
      value{q.dtype, heads * size.N * size.Dv}, log_decay{q.parameters, heads * size.N * size.D},
      decay_sums{q.sums, units * heads * size.N}, bonus_sums{q.sums, states},
      initial_state{q.sums, states * size.Dv}, initial_norm{q.sums, states},
      query_sums{q.sums, group_parts() * key_heads * size.N * size.D},
      key_sums{q.sums, group_parts() * key_heads * size.N * size.D};

  explicit Backward(const LinearProblem& problem)
      : q(problem),
        grad_out(q.dtype, size.B, size.H, size.N, size.Dv, 10),
        grad_state(q.sums, q.sequences, size.H, size.D, size.Dv, 11),
        grad_norm(q.sums, q.sequences, size.H, size.D, 1, 12) {}
  Backward(const Backward&) = delete;
  int64_t group_parts() const { return (size.H / size.Hk + kHeadsAtOnce - 1) / kHeadsAtOnce; }

  /// `parts`: tasks of features and of values; else of both.
  void run(bool parts) {
    Elements out(q.dtype, heads * size.N * size.Dv), state(q.sums, states * size.Dv),
        norm(q.sums, states), kept(q.sums, q.kept_blocks() * size.H * size.D * q.columns()),
        denominators(q.sums, heads * size.N);
    LinearAttentionParams f{};
    q.describe(f);
    f.out = out.data();
    f.state = state.data();
    f.norm = norm.data();
    f.kept = kept.data();
    f.denominators = denominators.data();
    f.range = 64;
    int64_t bytes = 0;
    linear_attention_layout(f, &bytes);
    fulgurite::run(linear_attention, f, q.sequences * size.H, bytes);

    LinearAttentionBackwardParams p{};
    q.describe(p);
    p.grad_out = grad_out.heads();
    p.grad_state = grad_state.heads();
    p.grad_norm = grad_norm.heads();
    p.out = {out.data(), size.H * size.N * size.Dv, size.N * size.Dv, size.Dv, 1};
    p.kept = kept.data();
    p.denominators = denominators.data();
    p.features = parts ? kFeatureUnit : size.D;
    p.values = parts ? 32 : 0;
    p.grad_query = query.data();
    p.grad_key = key.data();
    p.query_sums = query_sums.data();
    p.key_sums = key_sums.data();
    p.grad_value = value.data();
    if (q.options.decay == DecayKind::kFeature) p.grad_log_decay = log_decay.data();
    if (q.options.decay == DecayKind::kPosition) p.decay_sums = decay_sums.data();
    if (q.options.bonus) p.bonus_sums = bonus_sums.data();
    p.grad_initial_state = initial_state.data();
    p.grad_initial_norm = initial_norm.data();
    linear_attention_backward_layout(p, &bytes);
    fulgurite::run(linear_attention_backward, p, p.feature_tasks() + p.value_tasks(), bytes);
  }

  double loss() const {
    double sum = 0;
    for (int64_t s = 0; s < q.sequences; ++s)
      for (int64_t h = 0; h < size.H; ++h) {
        const LinearSpan& span = q.spans[static_cast<size_t>(s)];
        const LinearProblem::Head r = q.head(s, h);
        for (int64_t i = 0; i < span.queries; ++i)
          for (int64_t c = 0; c < size.Dv; ++c)
            sum += grad_out(span.batch, h, span.start + i, c) *
                   r.out[static_cast<size_t>(i * size.Dv + c)];
        for (int64_t d = 0; d < size.D; ++d)
          for (int64_t c = 0; c < q.columns(); ++c)
            sum += (c < size.Dv ? grad_state(s, h, d, c) : grad_norm(s, h, d, 0)) *
                   r.state[static_cast<size_t>(d * q.columns() + c)];
      }
    return sum;
  }
  double slope_in(const TestHeads& input, int64_t b, int64_t h, int64_t n, int64_t d) {
    q.nudged = &input;
    q.nudged_at = input.at(b, h, n, d);
    constexpr double kStep = 1e-4;
    q.nudge = kStep;
    const double above = loss();
    q.nudge = -kStep;
    return (above - loss()) / (2 * kStep);
  }

  /// A few numbers of an input; `at` says where its gradient stands.
  template <class At>
  void check(const char* name, const TestHeads& x, Dtype type, const At& at) {
    INFO(name << ", dtype " << int(q.dtype) << ", N " << size.N << ", D " << size.D << ", decay "
              << int(q.options.decay));
    const double tolerance = 1e-6 + (q.dtype == Dtype::kFloat64 ? 0 : 1e-4) +
                             (q.options.normalize && q.dtype != q.sums ? 0x1p-7 : 0);
    for (int64_t b = 0; b < x.B; ++b)
      for (int64_t h = 0; h < x.H; ++h)
        for (int64_t n = 0; n < x.N; n += 1 + x.N / 4)
          for (int64_t d = 0; d < x.D; d += 1 + x.D / 3)
            REQUIRE(near(type, at(b, h, n, d), slope_in(x, b, h, n, d), tolerance));
  }
  void check_all() {
    const auto of = [](const Elements& x, int64_t H, int64_t N, int64_t D) {
      return [&x, H, N, D](int64_t b, int64_t h, int64_t n, int64_t d) {
        return x[((b * H + h) * N + n) * D + d];
      };
    };
    const bool parts = group_parts() > 1;
    const auto of_group = [&](const Elements& whole, const Elements& sums) {
      return [&, parts](int64_t b, int64_t h, int64_t n, int64_t d) {
        const int64_t at = ((b * size.Hk + h) * size.N + n) * size.D + d;
        double sum = parts ? 0 : whole[at];
        for (int64_t part = 0; part < group_parts() && parts; ++part)
          sum += sums[part * key_heads * size.N * size.D + at];
        return sum;
      };
    };
    const Dtype type = parts ? q.sums : q.dtype;
    check("query", q.query, type, of_group(query, query_sums));
    check("key", q.key, type, of_group(key, key_sums));
    check("value", q.value, q.dtype, of(value, size.H, size.N, size.Dv));
    if (q.options.decay == DecayKind::kFeature)
      check("log_decay", q.log_decay, q.parameters, of(log_decay, size.H, size.N, size.D));
    if (q.options.decay == DecayKind::kPosition)
      check("log_decay", q.log_decay, q.sums, [&](int64_t b, int64_t h, int64_t n, int64_t d) {
        double sum = 0;
        for (int64_t u = 0; u < units && d == 0; ++u)
          sum += decay_sums[((u * size.B + b) * size.H + h) * size.N + n];
        return sum;
      });
    if (q.options.bonus)
      check("bonus", q.bonus, q.sums, [&](int64_t, int64_t h, int64_t, int64_t d) {
        double sum = 0;
        for (int64_t s = 0; s < q.sequences; ++s) sum += bonus_sums[(s * size.H + h) * size.D + d];
        return sum;
      });
    if (!q.options.started) return;
    check("initial_state", q.state, q.sums, of(initial_state, size.H, size.D, size.Dv));
    if (q.options.normalize)
      check("initial_norm", q.norm, q.sums, of(initial_norm, size.H, size.D, 1));
  }
};

}  // namespace

TEST_CASE("gradients of linear attention of every kind") {
  for (const Dtype dtype : kDtypes)
    for_linear_calls([&](const LinearSizes& size, const LinearOptions& options) {
      for (const bool parts : {false, true}) {
        Backward backward(LinearProblem(dtype, size, options));
        backward.run(parts);
        backward.check_all();
      }
    });
}
