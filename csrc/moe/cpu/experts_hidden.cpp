// The experts' hidden layer, forward and backward, for rows sorted by expert; x and dout are
// gathered while packing.
//
//   forward    g = W_gate x    u = W_up x    h = silu(g)·u                    silu(g) = g·σ(g)
//   backward   dh = W_outᵀ dout     dw = h·dh     dg = w·dh·u·(σ + a(1 − σ)),  du = w·dh·a,  a = g·σ
//
// One task is one segment of rows of one expert by one block of columns of I. A row's bits depend
// on nothing but itself: each product is one chain over blocks of depth, whatever rows stand beside
// it.

#include "moe/cpu/experts_tile.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

/// σ(x), as precise as products in E need it.
template <class E, class V>
FULGURITE_INLINE V sigmoid_for(V x) {
  if constexpr (kStep<E> == 1) return 1 / (1 + exp(-x));
  const V exponent = min(splat<V>(127), x * Element<V>(-1.4426950408889634));
  return 1 / (1 + exp2_rough(exponent));
}

/// Which rows and columns a task has.
struct HiddenTile {
  Segment segment;
  int64_t block, i0, n;  // block of columns, its first one, how many

  HiddenTile(const HiddenParams& p, int64_t task) {
    const int64_t blocks = ceil_div(p.I, kHiddenBlock);
    segment = p.segments[task / blocks];
    block = task % blocks;
    i0 = block * kHiddenBlock;
    n = at_most(kHiddenBlock, p.I - i0);
  }
};

template <class S>
struct HiddenScratch {
  using T = Accumulate<S>;
  using E = Operand<S>;
  E *gate_weights, *up_weights, *rows;
  T *gate, *up;

  HiddenScratch(const HiddenParams& p, Arena& arena) {
    gate_weights = arena.take<E>(pad_depth<E>(p.H) * kHiddenBlock);
    up_weights = arena.take<E>(pad_depth<E>(p.H) * kHiddenBlock);
    rows = arena.take<E>(kTokenBlock * kDepthStride);
    gate = arena.take<T>(kTokenBlock * kHiddenBlock);
    up = arena.take<T>(kTokenBlock * kHiddenBlock);
  }
};

template <class S>
void store_hidden(const HiddenParams& p, const HiddenTile& t, int64_t first, int64_t rows,
                  const HiddenScratch<S>& w) {
  using T = Accumulate<S>;
  using E = Operand<S>;
  using V = Native<T>;
  for (int64_t r = 0; r < rows; ++r) {
    T* const gate = p.hidden ? static_cast<T*>(p.hidden) + (first + r) * 2 * p.I + t.i0 : nullptr;
    E* const activated =
        p.activated ? static_cast<E*>(p.activated) + (first + r) * p.row_width + t.i0 : nullptr;
    for_lanes<T>(t.n, [&](int64_t c, int64_t lanes) {
      const V g = load<V>(w.gate + r * kHiddenBlock + c), u = load<V>(w.up + r * kHiddenBlock + c);
      if (gate) {
        store_lanes(gate + c, g, lanes);
        store_lanes(gate + p.I + c, u, lanes);
      }
      if (activated) store_lanes(activated + c, g * sigmoid_for<E>(g) * u, lanes);
    });
  }
}

template <class S>
void hidden_task(const HiddenParams& p, int64_t task, void* scratch) {
  using E = Operand<S>;
  Arena arena(scratch);
  HiddenScratch<S> w(p, arena);
  const HiddenTile t(p, task);
  // Element (k, n) of the product's B is W_in[n][k].
  pack_deep(matrix_of<S>(p.w_in, t.segment.expert, t.i0, 0).transposed(), p.H, t.n, w.gate_weights);
  pack_deep(matrix_of<S>(p.w_in, t.segment.expert, p.I + t.i0, 0).transposed(), p.H, t.n,
            w.up_weights);
  for_token_blocks(t.segment.first, t.segment.rows, [&](int64_t first, int64_t rows) {
    for (int64_t k0 = 0; k0 < p.H; k0 += kDepthBlock) {
      const int64_t depth = at_most(kDepthBlock, p.H - k0);
      gather<E, S>(p.x, p.permutation, p.K, first, rows, k0, depth, w.rows);
      multiply_block<E>(w.rows, kDepthStride, rows, w.gate_weights, k0, depth, t.n, w.gate,
                        kHiddenBlock);
      multiply_block<E>(w.rows, kDepthStride, rows, w.up_weights, k0, depth, t.n, w.up,
                        kHiddenBlock);
    }
    store_hidden<S>(p, t, first, rows, w);
  });
}

// ---- backward

template <class S>
struct GradHiddenScratch {
  using T = Accumulate<S>;
  using E = Operand<S>;
  E *weights, *rows;
  T* grad_activated;

  GradHiddenScratch(const HiddenParams& p, Arena& arena) {
    weights = arena.take<E>(pad_depth<E>(p.H) * kHiddenBlock);
    rows = arena.take<E>(kTokenBlock * kDepthStride);
    grad_activated = arena.take<T>(kTokenBlock * kHiddenBlock);
  }
};

/// Gradients of one row's gate and up, w·h, and this block's part of h·dh.
template <class S>
void grad_row(const HiddenParams& p, const HiddenTile& t, int64_t position,
              const Accumulate<S>* grad_activated) {
  using T = Accumulate<S>;
  using E = Operand<S>;
  using V = Native<T>;
  const T* const hidden = static_cast<const T*>(p.hidden) + position * 2 * p.I + t.i0;
  E* const activated =
      p.activated ? static_cast<E*>(p.activated) + position * p.row_width + t.i0 : nullptr;
  E* const grad_hidden =
      p.need_grad ? static_cast<E*>(p.grad_hidden) + position * 2 * p.I + t.i0 : nullptr;
  const T weight = static_cast<const T*>(p.weights)[p.permutation[position]];
  V dot{};
  for_lanes<T>(t.n, [&](int64_t c, int64_t lanes) {
    const V g = load_lanes<V>(hidden + c, lanes), u = load_lanes<V>(hidden + p.I + c, lanes);
    const V sigmoid = sigmoid_for<E>(g), a = g * sigmoid, h = a * u;
    if (activated) store_lanes(activated + c, h * weight, lanes);
    if (!grad_hidden) return;
    const V dh = load_lanes<V>(grad_activated + c, lanes);
    dot = madd(h, dh, dot);
    const V weighted = dh * weight;
    store_lanes(grad_hidden + c, weighted * u * (sigmoid + a * (T(1) - sigmoid)), lanes);
    store_lanes(grad_hidden + p.I + c, weighted * a, lanes);
  });
  if (grad_hidden)
    static_cast<T*>(p.dots)[position * ceil_div(p.I, kHiddenBlock) + t.block] = sum(dot);
}

template <class S>
void grad_hidden_task(const HiddenParams& p, int64_t task, void* scratch) {
  using E = Operand<S>;
  Arena arena(scratch);
  GradHiddenScratch<S> w(p, arena);
  const HiddenTile t(p, task);
  if (p.need_grad) pack_deep(matrix_of<S>(p.w_out, t.segment.expert, 0, t.i0), p.H, t.n, w.weights);
  for_token_blocks(t.segment.first, t.segment.rows, [&](int64_t first, int64_t rows) {
    for (int64_t k0 = 0; p.need_grad && k0 < p.H; k0 += kDepthBlock) {
      const int64_t depth = at_most(kDepthBlock, p.H - k0);
      gather<E, S>(p.grad, p.permutation, p.K, first, rows, k0, depth, w.rows);
      multiply_block<E>(w.rows, kDepthStride, rows, w.weights, k0, depth, t.n, w.grad_activated,
                        kHiddenBlock);
    }
    for (int64_t r = 0; r < rows; ++r)
      grad_row<S>(p, t, first + r, w.grad_activated + r * kHiddenBlock);
  });
}

}  // namespace

void moe_experts_hidden(const HiddenParams& p, int64_t task, void* scratch) {
  with_storage(p.dtype, [&](auto s) { hidden_task<decltype(s)>(p, task, scratch); });
}

void moe_experts_grad_hidden(const HiddenParams& p, int64_t task, void* scratch) {
  with_storage(p.dtype, [&](auto s) { grad_hidden_task<decltype(s)>(p, task, scratch); });
}

void moe_experts_hidden_layout(const HiddenParams& p, HiddenLayout* layout) {
  with_storage(p.dtype, [&](auto s) {
    using S = decltype(s);
    Arena forward(nullptr), backward(nullptr);
    HiddenScratch<S> measure_forward(p, forward);
    GradHiddenScratch<S> measure_backward(p, backward);
    layout->operand_bytes = sizeof(Operand<S>);
    layout->row_multiple = kStep<Operand<S>>;
    layout->hidden = forward.used();
    layout->grad_hidden = backward.used();
  });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
