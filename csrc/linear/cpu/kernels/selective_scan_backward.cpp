// Gradients of the selective scan. From the last position down, with G what later positions want of x_t and e_t = e^(δ_t A),
//   want = G + dy_t C_t      dC_t = Σ_d dy_t x_t      dB_t = Σ_d want·δ_t u_t      G ← want·e_t
//   g = G·x_{t−1}            dA = Σ_t g·δ_t           dδ_t = Σ_n (g·A + want·B_t u_t)
//   du_t = δ_t Σ_n want·B_t + D dy_t                  dD = Σ_t dy_t u_t
// dy = dout·silu(z), dz = dout·y·silu'(z); through softplus dδ is multiplied by σ. The states of a block of kScanBlock positions, and
// their e, are computed again from the states that the forward kept before it: the only exponentials of states here.
//
// Reads: all inputs, kept states, grad_out and grad_state, of any strides.
// Writes: gradients of u, delta, z and initial_state; sums over the channels and over the positions of a task, which
//   selective_scan_columns and selective_scan_channels add up to those of B and C, and of A, D and delta_bias.
// Task: a sequence by a range of channels of one group; columns: a block of positions of a group; channels: a range of channels.
// Order of sums: over n in order; over channels lane by lane along a range, over lanes once, over ranges in order; over positions from
//   the last to the first, over sequences in order.

#include "common/silu.h"
#include "linear/cpu/kernels/scan_tiles.h"
#include "simd/rule_math.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class T>
struct BackwardScratch {
  int64_t ld, N_ld;
  T *a, *G, *grad_A;           // (N, channels)
  T *e, *x, *grad_B, *grad_C;  // (positions, N, lanes), x one more
  T *u, *delta, *before, *z, *grad_out, *grad_u, *grad_delta, *grad_z;  // (positions, channels)
  T* y;                                                                 // (positions, lanes)
  T *B, *C;                                                             // (positions, N)
  T *skip, *bias, *grad_skip, *grad_bias;                               // (channels)

  BackwardScratch(void* base, const SelectiveScanBackwardParams& p)
      : BackwardScratch(Arena(base), p.N, p.range) {}
  int64_t bytes() const { return bytes_; }

 private:
  BackwardScratch(Arena arena, int64_t N, int64_t range) : ld(range), N_ld(pad_lanes<T>(N)) {
    for (T** states : {&a, &G, &grad_A}) *states = arena.take<T>(N * ld);
    for (T** steps : {&e, &x, &grad_B, &grad_C})
      *steps = arena.take<T>((kScanBlock + 1) * N * kLanes<T>);
    for (T** tile : {&u, &delta, &before, &z, &grad_out, &grad_u, &grad_delta, &grad_z})
      *tile = arena.take<T>(kScanBlock * ld);
    y = arena.take<T>(kScanBlock * kLanes<T>);
    for (T** columns : {&B, &C}) *columns = arena.take<T>(kScanBlock * N_ld);
    for (T** row : {&skip, &bias, &grad_skip, &grad_bias}) *row = arena.take<T>(ld);
    bytes_ = arena.used();
  }
  int64_t bytes_ = 0;
};

template <class S>
class RangeTask {
  using T = Accumulate<S>;
  using V = Native<T>;
  static constexpr int64_t kV = kLanes<T>;

 public:
  RangeTask(const SelectiveScanBackwardParams& p, int64_t task, void* memory)
      : p_(p),
        place_(p, task, p.range),
        s_(memory, p),
        range_(task % scan_tasks_of_sequence(p, p.range)) {}

  void run() {
    begin();
    const int64_t blocks = ceil_div(place_.span.length, kScanBlock);
    for (int64_t b = blocks - 1; b >= 0; --b) {
      const int64_t t = b * kScanBlock, left = place_.span.length - t;
      block(b, t, left < kScanBlock ? left : kScanBlock);
    }
    end();
  }

 private:
  void begin() {
    with_stored<S>(p_.A.float32, [&](auto stored) {
      stage_states(rows_of<decltype(stored)>(p_.A, 0, place_.first, 0), place_.channels, p_.N, s_.a,
                   s_.ld);
    });
    read_channels<S>(p_.skip, place_.first, place_.channels, s_.skip);
    read_channels<S>(p_.delta_bias, place_.first, place_.channels, s_.bias);
    read_states<T>(p_.grad_state, place_, p_.N, s_.G, s_.ld);
    for (int64_t i = 0; i < p_.N * s_.ld; ++i) s_.grad_A[i] = 0;
    for (int64_t c = 0; c < s_.ld; ++c) s_.grad_skip[c] = s_.grad_bias[c] = 0;
  }

  void block(int64_t b, int64_t t, int64_t n) {
    stage_channels<S>(p_.u, place_, t, n, s_.u, s_.ld);
    stage_delta<S>(p_, place_, t, n, s_.bias, s_.delta, s_.before, s_.ld);
    if (p_.z.data) stage_channels<S>(p_.z, place_, t, n, s_.z, s_.ld);
    stage_grad_out(t, n);
    stage_columns<S>(p_.B, place_, t, n, p_.N, s_.B, s_.N_ld);
    stage_columns<S>(p_.C, place_, t, n, p_.N, s_.C, s_.N_ld);
    for (int64_t i = 0; i < n * p_.N * kV; ++i) s_.grad_B[i] = s_.grad_C[i] = 0;
    for (int64_t c = 0; c < place_.channels; c += kV) {
      again(b, c, n);
      for (int64_t i = n - 1; i >= 0; --i) position(c, i);
    }
    store_channels<S>(p_, place_, t, n, s_.grad_u, s_.ld, false, p_.grad_u);
    store_channels<S>(p_, place_, t, n, s_.grad_z, s_.ld, false, p_.grad_z);
    store_channels<S>(p_, place_, t, n, s_.grad_delta, s_.ld, p_.delta.float32, p_.grad_delta);
    add_columns(t, n);
  }

  void stage_grad_out(int64_t t, int64_t n) {
    if (p_.grad_out.data) return stage_channels<S>(p_.grad_out, place_, t, n, s_.grad_out, s_.ld);
    for (int64_t i = 0; i < n * s_.ld; ++i) s_.grad_out[i] = 0;
  }

  /// e and x of a vector of channels, and y where the gate asks for it.
  void again(int64_t b, int64_t c, int64_t n) {
    const int64_t lanes = place_.channels - c < kV ? place_.channels - c : kV;
    const T* const kept =
        static_cast<const T*>(p_.kept) + ((place_.span.block + b) * p_.D + place_.first + c) * p_.N;
    stage_states(Rows<T>{kept, p_.N, 1}, lanes, p_.N, s_.x, kV);
    for (int64_t i = 0; i < n; ++i) {
      const V u = load<V>(s_.u + i * s_.ld + c), delta = load<V>(s_.delta + i * s_.ld + c),
              in = delta * u;
      const T *const B = s_.B + i * s_.N_ld, *const C = s_.C + i * s_.N_ld;
      V y = load<V>(s_.skip + c) * u;
      for (int64_t k = 0; k < p_.N; ++k) {
        const int64_t at = (i * p_.N + k) * kV;
        const V e = decay_factor(delta * load<V>(s_.a + k * s_.ld + c));
        const V next = madd(e, load<V>(s_.x + at), in * B[k]);
        store(s_.e + at, e);
        store(s_.x + at + p_.N * kV, next);
        if (p_.z.data) y = madd(next, splat<V>(C[k]), y);
      }
      store(s_.y + i * kV, y);
    }
  }

  /// The gradient of y, and of z.
  V through_gate(int64_t c, int64_t i) {
    const int64_t at = i * s_.ld + c;
    const V grad = load<V>(s_.grad_out + at);
    if (!p_.z.data) return grad;
    const Curve<V> gate = SiluRule{}.curve<VectorMath>(load<V>(s_.z + at));
    store(s_.grad_z + at, grad * load<V>(s_.y + i * kV) * gate.slope);
    return grad * gate.value;
  }

  void position(int64_t c, int64_t i) {
    const int64_t at = i * s_.ld + c;
    const V u = load<V>(s_.u + at), delta = load<V>(s_.delta + at), in = delta * u,
            dy = through_gate(c, i);
    const T *const B = s_.B + i * s_.N_ld, *const C = s_.C + i * s_.N_ld;
    V into{}, decay{};
    for (int64_t k = 0; k < p_.N; ++k) {
      const int64_t step = (i * p_.N + k) * kV, state = k * s_.ld + c;
      const V want = madd(dy, splat<V>(C[k]), load<V>(s_.G + state));
      store(s_.grad_C + step,
            madd(dy, load<V>(s_.x + step + p_.N * kV), load<V>(s_.grad_C + step)));
      store(s_.grad_B + step, madd(want, in, load<V>(s_.grad_B + step)));
      into = madd(want, splat<V>(B[k]), into);
      const V back = want * load<V>(s_.e + step), g = back * load<V>(s_.x + step);
      store(s_.G + state, back);
      decay = madd(g, load<V>(s_.a + state), decay);
      store(s_.grad_A + state, madd(g, delta, load<V>(s_.grad_A + state)));
    }
    store(s_.grad_u + at, madd(into, delta, dy * load<V>(s_.skip + c)));
    V grad_delta = madd(into, u, decay);
    if (p_.softplus) grad_delta = grad_delta * sigmoid(load<V>(s_.before + at));
    store(s_.grad_delta + at, grad_delta);
    store(s_.grad_skip + c, madd(dy, u, load<V>(s_.grad_skip + c)));
    store(s_.grad_bias + c, load<V>(s_.grad_bias + c) + grad_delta);
  }

  /// dB and dC of the range, over lanes.
  void add_columns(int64_t t, int64_t n) {
    if (!p_.column_sums) return;
    const int64_t position = place_.span.batch * p_.L + place_.span.start + t;
    T* to = static_cast<T*>(p_.column_sums) + (range_ * p_.positions + position) * 2 * p_.N;
    for (int64_t i = 0; i < n; ++i)
      for (const T* lanes : {s_.grad_B + i * p_.N * kV, s_.grad_C + i * p_.N * kV})
        for (int64_t k = 0; k < p_.N; ++k) *to++ = sum(load<V>(lanes + k * kV));
  }

  void end() {
    const int64_t row = place_.sequence * p_.D + place_.first;
    if (p_.grad_initial_state)
      store_turned(s_.G, s_.ld, place_.channels, p_.N,
                   static_cast<T*>(p_.grad_initial_state) + row * p_.N, p_.N);
    if (!p_.channel_sums) return;
    T* const to = static_cast<T*>(p_.channel_sums) + row * (p_.N + 2);
    store_turned(s_.grad_A, s_.ld, place_.channels, p_.N, to, p_.N + 2);
    for (int64_t c = 0; c < place_.channels; ++c) {
      to[c * (p_.N + 2) + p_.N] = s_.grad_skip[c];
      to[c * (p_.N + 2) + p_.N + 1] = s_.grad_bias[c];
    }
  }

  const SelectiveScanBackwardParams& p_;
  const ScanPlace place_;
  const BackwardScratch<T> s_;
  const int64_t range_;
};

/// The sums of a group's ranges, for a block of positions.
template <class S>
void columns_task(const SelectiveScanBackwardParams& p, int64_t task, void* memory) {
  using T = Accumulate<S>;
  const int64_t blocks = ceil_div(p.covered, kScanBlock), t = task % blocks * kScanBlock,
                group = task / blocks % p.G, batch = task / (blocks * p.G),
                n = p.covered - t < kScanBlock ? p.covered - t : kScanBlock,
                ranges = scan_tasks_of_sequence(p, p.range) / p.G, ld = 2 * pad_lanes<T>(p.N);
  T* const tile = static_cast<T*>(memory);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < 2 * p.N; ++k) {
      T total = 0;
      for (int64_t r = 0; r < ranges; ++r)
        total += static_cast<const T*>(
            p.column_sums)[((group * ranges + r) * p.positions + batch * p.L + t + i) * 2 * p.N +
                           k];
      tile[i * ld + (k < p.N ? k : ld / 2 + k - p.N)] = total;
    }
  const int64_t at = (batch * p.G + group) * p.N * p.L + t;
  store_rows<S>(p.grad_B, p.B.float32, at, tile, ld, p.N, n, p.L);
  store_rows<S>(p.grad_C, p.C.float32, at, tile + ld / 2, ld, p.N, n, p.L);
}

template <class S>
void channels_task(const SelectiveScanBackwardParams& p, int64_t first, int64_t last) {
  using T = Accumulate<S>;
  const int64_t row = p.N + 2;
  for (int64_t d = first; d < last; ++d)
    for (int64_t k = 0; k < row; ++k) {
      T total = 0;
      for (int64_t s = 0; s < p.sequences; ++s)
        total += static_cast<const T*>(p.channel_sums)[(s * p.D + d) * row + k];
      if (k < p.N)
        store_number<S>(p.grad_A, p.A.float32, d * p.N + k, total);
      else if (k == p.N)
        store_number<S>(p.grad_skip, p.skip.float32, d, total);
      else
        store_number<S>(p.grad_delta_bias, p.delta_bias.float32, d, total);
    }
}

}  // namespace

void selective_scan_backward_layout(const SelectiveScanBackwardParams& p, int64_t* bytes) {
  with_storage(p.dtype, [&](auto s) {
    *bytes = BackwardScratch<Accumulate<decltype(s)>>(nullptr, p).bytes();
  });
}

void selective_scan_backward(const SelectiveScanBackwardParams& p, int64_t task, void* scratch) {
  with_storage(p.dtype, [&](auto s) { RangeTask<decltype(s)>(p, task, scratch).run(); });
}

void selective_scan_columns_layout(const SelectiveScanBackwardParams& p, int64_t* bytes) {
  with_storage(p.dtype, [&](auto s) {
    using T = Accumulate<decltype(s)>;
    *bytes = kScanBlock * 2 * pad_lanes<T>(p.N) * static_cast<int64_t>(sizeof(T));
  });
}

void selective_scan_columns(const SelectiveScanBackwardParams& p, int64_t task, void* scratch) {
  with_storage(p.dtype, [&](auto s) { columns_task<decltype(s)>(p, task, scratch); });
}

void selective_scan_channels(const SelectiveScanBackwardParams& p, int64_t first, int64_t last) {
  with_storage(p.dtype, [&](auto s) { channels_task<decltype(s)>(p, first, last); });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
