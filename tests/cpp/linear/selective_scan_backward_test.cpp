// Gradients of the selective scan, from the output and from the last states, against slopes of plain loops.
#include "catch.h"
#include "scan_problem.h"
#include "scratch.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
SelectiveScanTaskFn selective_scan;
SelectiveScanLayoutFn selective_scan_layout;
SelectiveScanBackwardTaskFn selective_scan_backward, selective_scan_columns;
SelectiveScanBackwardLayoutFn selective_scan_backward_layout, selective_scan_columns_layout;
SelectiveScanChannelsFn selective_scan_channels;
}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite

using namespace fulgurite;
using namespace fulgurite::FULGURITE_VARIANT;

namespace {

struct Backward {
  ScanProblem q;
  const ScanSizes& size = q.size;
  int64_t signals = size.B * size.D * size.L, states = q.sequences * size.D * size.N,
          columns = size.B * size.G * size.N * size.L;
  TestSignal grad_out, grad_state;
  Elements u{q.dtype, signals}, delta{q.parameters, signals}, z{q.dtype, signals},
      A{q.parameters, size.D * size.N}, B{q.parameters, columns}, C{q.parameters, columns},
      skip{q.parameters, size.D}, bias{q.parameters, size.D}, initial{q.sums, states};

  Backward(const ScanProblem& problem, SignalOrder order)
      : q(problem),
        grad_out(q.dtype, size.B, size.D, size.L, order, 10),
        grad_state(q.sums, q.sequences, size.D, size.N, order, 11) {}
  Backward(const Backward&) = delete;

  Elements kept() const {
    Elements out(q.dtype, signals), state(q.sums, states),
        kept(q.sums, (size.B * size.L / kKeptEvery + q.sequences) * size.D * size.N);
    SelectiveScanParams p{};
    q.describe(p);
    p.out = out.data();
    p.state = state.data();
    p.kept = kept.data();
    int64_t bytes = 0;
    selective_scan_layout(p, &bytes);
    fulgurite::run(selective_scan, p, q.sequences * scan_tasks_of_sequence(p, kScanChannels),
                   bytes);
    return kept;
  }
  void run(int64_t range) {
    const Elements before = kept();
    SelectiveScanBackwardParams p{};
    q.describe(p);
    p.range = range;
    p.sequences = q.sequences;
    p.batch = size.B;
    p.positions = size.B * size.L;
    p.covered = size.L;
    p.kept = before.data();
    p.grad_out = q.input(grad_out, q.dtype);
    p.grad_state = grad_state.signal();
    p.grad_u = u.data();
    p.grad_delta = delta.data();
    p.grad_z = q.gated ? z.data() : nullptr;
    p.grad_A = A.data();
    p.grad_B = B.data();
    p.grad_C = C.data();
    p.grad_skip = skip.data();
    p.grad_delta_bias = bias.data();
    p.grad_initial_state = initial.data();
    const int64_t tasks = scan_tasks_of_sequence(p, range);
    Elements column_sums(q.sums, tasks * p.positions * 2 * size.N + 1),
        channel_sums(q.sums, q.sequences * size.D * (size.N + 2));
    p.column_sums = column_sums.data();
    p.channel_sums = channel_sums.data();
    int64_t bytes = 0;
    selective_scan_backward_layout(p, &bytes);
    fulgurite::run(selective_scan_backward, p, q.sequences * tasks, bytes);
    selective_scan_columns_layout(p, &bytes);
    fulgurite::run(selective_scan_columns, p,
                   size.B * size.G * ((size.L + kScanBlock - 1) / kScanBlock), bytes);
    selective_scan_channels(p, 0, size.D / 2);
    selective_scan_channels(p, size.D / 2, size.D);
  }

  /// Of what channel d of sequence s gives, for the cotangents.
  double loss(const ScanProblem& nudged, int64_t s, int64_t d) const {
    const Span span = q.span(s);
    const ScanProblem::Channel c = nudged.channel(s, d);
    double sum = 0;
    for (int64_t t = 0; t < span.length; ++t)
      sum += grad_out(span.batch, d, span.start + t) * c.out[static_cast<size_t>(t)];
    for (int64_t n = 0; n < size.N; ++n)
      sum += grad_state(s, d, n) * c.state[static_cast<size_t>(n)];
    return sum;
  }
  /// The slope of the loss of channels [first, last) in one number of `input`.
  double slope_in(const TestSignal& input, int64_t b, int64_t c, int64_t t, int64_t first,
                  int64_t last) {
    q.nudged = &input;
    q.nudged_at = input.at(b, c, t);
    return slope([&](double h) {
      q.nudge = h;
      double sum = 0;
      for (int64_t s = 0; s < q.sequences; ++s)
        for (int64_t d = first; d < last; ++d) sum += loss(q, s, d);
      return sum;
    });
  }
  void compare(const TestSignal& input, Dtype type, const Elements& actual, int64_t at, int64_t b,
               int64_t c, int64_t t, int64_t first, int64_t last) {
    const double tolerance = 1e-7 + (q.dtype == Dtype::kFloat64 ? 0 : 2e-5);
    REQUIRE(near(type, actual[at], slope_in(input, b, c, t, first, last), tolerance));
  }
  void check_signals() {
    for (int64_t b = 0; b < size.B; ++b)
      for (int64_t d = 0; d < size.D; ++d)
        for (int64_t t = 0; t < size.L; t += 3) {
          const int64_t at = (b * size.D + d) * size.L + t;
          compare(q.u, q.dtype, u, at, b, d, t, d, d + 1);
          compare(q.delta, q.parameters, delta, at, b, d, t, d, d + 1);
          if (q.gated) compare(q.z, q.dtype, z, at, b, d, t, d, d + 1);
        }
  }
  void check_columns() {
    const int64_t width = size.D / size.G;
    for (int64_t g = 0; g < size.B * size.G; ++g)
      for (int64_t n = 0; n < size.N; ++n)
        for (int64_t t = 0; t < size.L; t += 5) {
          const int64_t at = (g * size.N + n) * size.L + t, first = g % size.G * width;
          compare(q.B, q.parameters, B, at, g, n, t, first, first + width);
          compare(q.C, q.parameters, C, at, g, n, t, first, first + width);
        }
  }
  void check_channels() {
    for (int64_t d = 0; d < size.D; ++d) {
      for (int64_t n = 0; n < size.N; ++n) {
        compare(q.A, q.parameters, A, d * size.N + n, 0, d, n, d, d + 1);
        for (int64_t s = 0; s < q.sequences && q.started; ++s)
          compare(q.initial, q.sums, initial, (s * size.D + d) * size.N + n, s, d, n, d, d + 1);
      }
      compare(q.skip, q.parameters, skip, d, 0, d, 0, d, d + 1);
      compare(q.bias, q.parameters, bias, d, 0, d, 0, d, d + 1);
    }
  }
  void check(int64_t range = 64) {
    INFO("dtype " << int(q.dtype) << ", B " << size.B << ", D " << size.D << ", L " << size.L
                  << ", N " << size.N << ", G " << size.G << ", sequences " << q.sequences
                  << ", strides " << q.u.channel << ", " << q.u.position);
    run(range);
    check_signals();
    check_columns();
    check_channels();
  }
};

}  // namespace

TEST_CASE("gradients of scans of every layout") {
  for (const Dtype dtype : kDtypes)
    for (const SignalOrder order : kSignalOrders)
      for (const int64_t L : {1, 5, 37}) {
        Backward({dtype, {2, 5, L, 3, 1}, order, true, true, true, false}, order).check();
        Backward({dtype, {1, 6, L, 2, 2}, order, false, false, false, true},
                 SignalOrder::kPositionsLast)
            .check();
      }
}

TEST_CASE("gradients over several ranges of channels") {
  for (const int64_t range : {32, 64})
    Backward(
        {Dtype::kFloat32, {1, 70, 4, 2, 1}, SignalOrder::kChannelsLast, true, true, true, false},
        SignalOrder::kChannelsLast)
        .check(range);
}

TEST_CASE("gradients of scans stay within a sequence of a pack") {
  for (const Dtype dtype : kDtypes)
    for (const int64_t split : {1, 20, 35})
      Backward(
          {dtype, {1, 3, 40, 2, 1, split}, SignalOrder::kChannelsLast, true, true, true, false},
          SignalOrder::kPositionsLast)
          .check();
}
