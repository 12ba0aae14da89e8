// Router losses, their gradients and the selection bias against plain loops in float64: every type, score and layout of logits.
#include "catch.h"
#include "moe/table.h"
#include "scratch.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
LossTaskFn moe_balance_loss, moe_balance_loss_backward, moe_score_sums, moe_z_loss,
    moe_z_loss_backward;
UpdateBiasFn moe_update_bias;
}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite

using namespace fulgurite;
using namespace fulgurite::FULGURITE_VARIANT;

namespace {

using Numbers = std::vector<double>;

constexpr double kEps = 0.125, kGrad = 0.75;

double log_sum_exp(const Numbers& row) {
  double sum = 0;
  for (const double x : row) sum += std::exp(x);
  return std::log(sum);
}

/// The row's scores, which sum to 1, or to 1 without eps.
Numbers scores(Score score, const Numbers& row) {
  const bool softmax = score == Score::kSoftmax || score == Score::kSoftmaxTopk;
  Numbers s;
  double total = softmax ? 0 : kEps;
  for (const double x : row) {
    s.push_back(softmax                    ? std::exp(x)
                : score == Score::kSigmoid ? 1 / (1 + std::exp(-x))
                                           : std::sqrt(std::log1p(std::exp(x))));
    total += s.back();
  }
  for (double& x : s) x /= total;
  return s;
}

/// T tokens of which the mask hides one in three, whose logits are NaN.
struct Problem {
  Dtype dtype;
  Score score;
  int64_t T, E;
  Table logits;
  Elements coefficients;
  bool mask[40] = {};
  std::vector<int32_t> sequence;

  Problem(Dtype dtype, Score score, int64_t T, int64_t E, Order order)
      : dtype(dtype),
        score(score),
        T(T),
        E(E),
        logits(dtype, T, E, order, 3, 4),
        coefficients(accumulate(dtype), 2 * padded_row(E)) {
    for (int64_t s = 0; s < 2; ++s)
      for (int64_t e = 0; e < E; ++e)
        coefficients.set(s * padded_row(E) + e, std::cos(static_cast<double>(5 * e + s)));
    for (int64_t t = 0; t < T; ++t) {
      sequence.push_back(t % 2);
      mask[2 * t] = t % 3 != 1;
      for (int64_t e = 0; e < E && hidden(t); ++e) logits.set(t, e, NAN);
    }
  }
  bool hidden(int64_t t) const { return !mask[2 * t]; }
  double coefficient(int64_t t, int64_t e) const {
    return coefficients[sequence[t] * padded_row(E) + e];
  }
  Numbers row(int64_t t) const {
    Numbers x;
    for (int64_t e = 0; e < E; ++e) x.push_back(logits(t, e));
    return x;
  }
  double balance(int64_t t, const Numbers& logits_of_t) const {
    const Numbers p = scores(score, logits_of_t);
    double sum = 0;
    for (int64_t e = 0; e < E; ++e) sum += coefficient(t, e) * p[e];
    return sum;
  }
  static double square(double x) { return x * x; }

  LossParams params() const {
    LossParams p{};
    p.dtype = dtype;
    p.T = T;
    p.E = E;
    p.score = score;
    p.eps = kEps;
    p.logits = logits.matrix();
    p.token_mask = {mask, 2};
    p.coefficients = coefficients.data();
    p.sequence = sequence.data();
    p.grad = kGrad;
    return p;
  }
  /// `width` numbers of each of the two tasks.
  Numbers partials(LossTaskFn& kernel, int64_t width) const {
    Numbers partial(static_cast<size_t>(2 * width), NAN);
    LossParams p = params();
    p.partial = partial.data();
    run(kernel, p);
    return partial;
  }
  void run(LossTaskFn& kernel, const LossParams& p) const {
    Scratch scratch(kRowBuffers * padded_row(E) * 8);
    kernel(p, 0, 0, T / 2, scratch.data());
    kernel(p, 1, T / 2, T, scratch.data());
  }

  void check_sums() const {
    const Numbers loss = partials(moe_balance_loss, 1), z = partials(moe_z_loss, 1),
                  sums = partials(moe_score_sums, E);
    for (int part = 0; part < 2; ++part) {
      double balance_sum = 0, z_sum = 0;
      Numbers score_sum(static_cast<size_t>(E));
      for (int64_t t = part ? T / 2 : 0; t < (part ? T : T / 2); ++t) {
        if (hidden(t)) continue;
        balance_sum += balance(t, row(t));
        z_sum += square(log_sum_exp(row(t)));
        const Numbers p = scores(score, row(t));
        for (int64_t e = 0; e < E; ++e) score_sum[e] += p[e];
      }
      REQUIRE(near(accumulate(dtype), loss[part], balance_sum));
      REQUIRE(near(accumulate(dtype), z[part], z_sum));
      for (int64_t e = 0; e < E; ++e)
        REQUIRE(near(accumulate(dtype), sums[part * E + e], score_sum[e]));
    }
  }
  /// The gradient against the slopes of loss(t, logits of t).
  template <class Loss>
  void check_gradient(LossTaskFn& kernel, const Loss& loss) const {
    Elements grad(dtype, T * E + 20, 99);
    LossParams p = params();
    p.grad_logits = grad.data();
    run(kernel, p);
    for (int64_t t = 0; t < T; ++t)
      for (int64_t e = 0; e < E; ++e) {
        Numbers x = row(t);
        const double at = x[e], expected = hidden(t) ? 0 : kGrad * slope([&](double h) {
                                                             x[e] = at + h;
                                                             return loss(t, x);
                                                           });
        REQUIRE(near(dtype, grad[t * E + e], expected, kSlopeError));
      }
    for (int64_t i = 0; i < 20; ++i) REQUIRE(grad[T * E + i] == 99);
  }
};

}  // namespace

TEST_CASE("losses of a router and their gradients") {
  for (const Dtype dtype : kDtypes)
    for (const Score score :
         {Score::kSoftmax, Score::kSoftmaxTopk, Score::kSigmoid, Score::kSqrtSoftplus})
      for (const int64_t T : {0, 1, 7})
        for (const int64_t E : {1, 3, 8, 15, 16, 17, 40})
          for (const Order order : kOrders) {
            INFO("dtype " << int(dtype) << ", score " << int(score) << ", T " << T << ", E " << E
                          << ", order " << int(order));
            const Problem problem(dtype, score, T, E, order);
            problem.check_sums();
            problem.check_gradient(moe_balance_loss_backward, [&](int64_t t, const Numbers& x) {
              return problem.balance(t, x);
            });
            problem.check_gradient(moe_z_loss_backward, [](int64_t, const Numbers& x) {
              return Problem::square(log_sum_exp(x));
            });
          }
}

TEST_CASE("the selection bias moves towards experts with too few tokens") {
  for (const Dtype dtype : kDtypes)
    for (const int64_t E : {1, 3, 17})
      for (const BiasRule rule : {BiasRule::kSign, BiasRule::kProportional})
        for (const bool center : {false, true}) {
          const bool proportional = rule == BiasRule::kProportional;
          INFO("dtype " << int(dtype) << ", E " << E << (proportional ? ", proportional" : "")
                        << (center ? ", centred" : ""));
          std::vector<int64_t> counts;
          double mean = 0, centre = 0;
          for (int64_t e = 0; e < E; ++e) {
            counts.push_back(e * 7 % 5);
            mean += static_cast<double>(counts.back()) / static_cast<double>(E);
          }
          const Elements before = Elements::sines(dtype, 2 * E, 4);
          Elements bias = before;
          UpdateBiasProblem p{dtype, E, bias.data(), 2, counts.data(), 0.25, rule, center};
          moe_update_bias(p);
          const auto update = [&](int64_t e) {
            const double lack = mean - static_cast<double>(counts[e]);
            if (mean == 0) return 0.0;
            if (proportional) return 0.25 * lack / mean;
            return std::fabs(lack) < 1e-9 ? 0.0 : std::copysign(0.25, lack);
          };
          for (int64_t e = 0; e < E && center; ++e) centre += update(e) / static_cast<double>(E);
          for (int64_t e = 0; e < E; ++e) {
            REQUIRE(near(dtype, bias[2 * e], before[2 * e] + update(e) - centre));
            REQUIRE(bias[2 * e + 1] == before[2 * e + 1]);
          }
        }
}
