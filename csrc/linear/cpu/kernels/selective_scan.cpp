// The selective scan of Mamba, every channel with N states of its own,
//   x_t = e^(δ_t A)·x_{t−1} + δ_t B_t u_t      y_t = Σ_n C_t x_t + D u_t      out_t = y_t·z_t·σ(z_t)
// δ = delta + delta_bias, or softplus of it. B and C are those of the channel's group.
//
// Reads: all inputs, of any strides.
// Writes: out and the last states; before every kScanBlock positions the states, where a backward will want them.
// Task: a sequence by a block of kScanChannels channels of one group.
// Order of sums: D u first, even n, odd n, then both together; so an output's bits do not depend on where a call begins.

#include "common/silu.h"
#include "linear/cpu/kernels/scan_tiles.h"
#include "simd/rule_math.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class T>
struct ForwardScratch {
  static constexpr int64_t kLd = kScanChannels;
  int64_t state_ld, N_ld;
  T *a, *x;              // (N, channels)
  T *u, *delta, *z, *y;  // (positions, channels)
  T *B, *C;              // (positions, N)
  T *skip, *bias;

  ForwardScratch(void* base, const SelectiveScanProblem& p) : ForwardScratch(Arena(base), p.N) {}
  int64_t bytes() const { return bytes_; }

 private:
  ForwardScratch(Arena arena, int64_t N) : state_ld(kLd), N_ld(pad_lanes<T>(N)) {
    a = arena.take<T>(N * kLd);
    x = arena.take<T>(N * kLd);
    for (T** tile : {&u, &delta, &z, &y}) *tile = arena.take<T>(kScanBlock * kLd);
    for (T** columns : {&B, &C}) *columns = arena.take<T>(kScanBlock * N_ld);
    skip = arena.take<T>(kLd);
    bias = arena.take<T>(kLd);
    bytes_ = arena.used();
  }
  int64_t bytes_ = 0;
};

/// One position of a vector of channels: the states go on, y is what they give.
template <class V, class T>
FULGURITE_INLINE V step(const T* a, T* x, const T* B, const T* C, int64_t N, int64_t ld, V delta,
                        V in, V start) {
  V even = start, odd{};
  const auto advance = [&](int64_t n, V sum) {
    const V factor = decay_factor(delta * load<V>(a + n * ld));
    const V next = madd(factor, load<V>(x + n * ld), in * B[n]);
    store(x + n * ld, next);
    return madd(next, splat<V>(C[n]), sum);
  };
  int64_t n = 0;
  for (; n + 2 <= N; n += 2) {
    even = advance(n, even);
    odd = advance(n + 1, odd);
  }
  if (n < N) even = advance(n, even);
  return even + odd;
}

template <class S>
void forward_task(const SelectiveScanParams& p, int64_t task, void* memory) {
  using T = Accumulate<S>;
  using V = Native<T>;
  constexpr int64_t kLd = kScanChannels;
  const ScanPlace place(p, task, kScanChannels);
  const ForwardScratch<T> s(memory, p);
  const int64_t states = place.sequence * p.D + place.first;
  with_stored<S>(p.A.float32, [&](auto stored) {
    stage_states(rows_of<decltype(stored)>(p.A, 0, place.first, 0), place.channels, p.N, s.a, kLd);
  });
  read_channels<S>(p.skip, place.first, place.channels, s.skip);
  read_channels<S>(p.delta_bias, place.first, place.channels, s.bias);
  read_states<T>(p.initial_state, place, p.N, s.x, kLd);
  for (int64_t t = 0; t < place.span.length; t += kScanBlock) {
    const int64_t n = place.span.length - t < kScanBlock ? place.span.length - t : kScanBlock;
    if (p.kept)
      store_turned(
          s.x, kLd, place.channels, p.N,
          static_cast<T*>(p.kept) + ((place.span.block + t / kScanBlock) * p.D + place.first) * p.N,
          p.N);
    stage_channels<S>(p.u, place, t, n, s.u, kLd);
    stage_delta<S>(p, place, t, n, s.bias, s.delta, static_cast<T*>(nullptr), kLd);
    if (p.z.data) stage_channels<S>(p.z, place, t, n, s.z, kLd);
    stage_columns<S>(p.B, place, t, n, p.N, s.B, s.N_ld);
    stage_columns<S>(p.C, place, t, n, p.N, s.C, s.N_ld);
    for (int64_t c = 0; c < place.channels; c += kWidth<V>)
      for (int64_t i = 0; i < n; ++i) {
        const V u = load<V>(s.u + i * kLd + c), delta = load<V>(s.delta + i * kLd + c);
        V y = step(s.a + c, s.x + c, s.B + i * s.N_ld, s.C + i * s.N_ld, p.N, kLd, delta, delta * u,
                   load<V>(s.skip + c) * u);
        if (p.z.data) y = y * SiluRule{}.value<VectorMath>(load<V>(s.z + i * kLd + c));
        store(s.y + i * kLd + c, y);
      }
    store_channels<S>(p, place, t, n, s.y, kLd, false, p.out);
  }
  store_turned(s.x, kLd, place.channels, p.N, static_cast<T*>(p.state) + states * p.N, p.N);
}

}  // namespace

void selective_scan_layout(const SelectiveScanParams& p, int64_t* bytes) {
  with_storage(p.dtype, [&](auto s) {
    *bytes = ForwardScratch<Accumulate<decltype(s)>>(nullptr, p).bytes();
  });
}

void selective_scan(const SelectiveScanParams& p, int64_t task, void* scratch) {
  with_storage(p.dtype, [&](auto s) { forward_task<decltype(s)>(p, task, scratch); });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
