// The experts' hidden layer, forward and backward, for rows of operands sorted by expert.
//
//   forward    g = W_gate x + b_gate    u = W_up x + b_up    h = a(g)·up(u)             moe/rules/activations.h
//   backward   dh = W_outᵀ dout    dw = h·dh    dg = w·dh·up(u)·a'(g)    du = w·dh·a(g)·up'(u)
//
// Without gates h = a(g).
//
// Reads: x as operands and W_in; backward hidden, dout as operands, W_out and the weights of the tokens.
// Writes: hidden (g and u) and h as operands; backward w·h and (dg, du) as operands, and parts of dw (dots).
// Task: one segment of rows of one expert by one block of kHiddenBlock columns of I.
// Order of sums: a product is a chain for each kDepthBlock of its depth, and those are added in order, whatever rows stand beside it:
// a row's bits depend on nothing but itself. dw is one part a block of columns, which the caller adds in order.

#include "moe/cpu/kernels/activations.h"
#include "moe/cpu/kernels/gate_up.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

/// The rows and columns of a task.
struct HiddenTask {
  Segment segment;
  int64_t block, i0, n;  // block of columns, its first one, how many
  GateColumns columns;

  HiddenTask(const HiddenParams& p, int64_t task) : columns(p) {
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
  E* weights;
  T *product, *bias;  // gates and ups of a row as GateColumns say

  HiddenScratch(const HiddenParams& p, Arena& arena) {
    weights = arena.take<E>(pad_depth<E>(p.H) * kHiddenWidth);
    product = arena.take<T>(kTokenBlock * kHiddenWidth);
    bias = arena.take<T>(kHiddenWidth);
  }
};

template <class S, class Act>
void store_hidden(const HiddenParams& p, const HiddenTask& t, int64_t first, int64_t rows,
                  const HiddenScratch<S>& w, const Act& act) {
  using T = Accumulate<S>;
  using E = Operand<S>;
  using V = Native<T>;
  using Math = ActivationMath<E>;
  for (int64_t r = 0; r < rows; ++r) {
    const T* const product = w.product + r * kHiddenWidth;
    T* const hidden =
        p.hidden ? static_cast<T*>(p.hidden) + (first + r) * p.width() + t.columns.first(t.i0)
                 : nullptr;
    E* const activated =
        p.activated ? static_cast<E*>(p.activated) + (first + r) * p.row_width + t.i0 : nullptr;
    for_lanes<T>(t.n, [&](int64_t c, int64_t lanes) {
      const GateUp<V> x = t.columns.template load<V>(product, kHiddenBlock, c, lanes);
      if (hidden) t.columns.store(hidden, p.I, c, lanes, x);
      if (!activated) return;
      const V a = act.template value<Math>(x.gate);
      store_lanes(activated + c, p.gated ? a * act.template up<Math>(x.up) : a, lanes);
    });
  }
}

/// Element (k, n) of the product's B is W_in[n][k].
template <class S>
Strided<S> hidden_weights(const HiddenParams& p, const HiddenTask& t, int64_t column) {
  return matrix_of<S>(p.w_in, t.segment.expert, column, 0).transposed();
}

template <class S>
void finish_hidden(const HiddenParams& p, const HiddenTask& t, int64_t first, int64_t rows,
                   const HiddenScratch<S>& w) {
  if (p.b_in.data)
    t.columns.for_parts(t.i0, t.n, p.I, [&](int64_t, int64_t n, int64_t at) {
      add_bias(w.bias + at, rows, n, w.product + at, kHiddenWidth);
    });
  with_activation(p.activation,
                  [&](const auto& act) { store_hidden<S>(p, t, first, rows, w, act); });
}

template <class S>
void few_rows_of_hidden(const HiddenParams& p, const HiddenTask& t, const HiddenScratch<S>& w) {
  using E = Operand<S>;
  const auto [expert, first, rows] = t.segment;
  const MatrixA<E> x = operand_matrix<E>(p.x, first);
  t.columns.for_parts(t.i0, t.n, p.I, [&, rows = rows](int64_t column, int64_t n, int64_t at) {
    multiply_few<E>(x, rows, hidden_weights<S>(p, t, column), p.H, n, w.product + at, kHiddenWidth);
  });
  finish_hidden<S>(p, t, first, rows, w);
}

template <class S>
void hidden_task(const HiddenParams& p, int64_t task, void* scratch) {
  using E = Operand<S>;
  Arena arena(scratch);
  const HiddenScratch<S> w(p, arena);
  const HiddenTask t(p, task);
  if (p.b_in.data)
    t.columns.for_parts(t.i0, t.n, p.I, [&](int64_t column, int64_t n, int64_t at) {
      load_bias<S>(p.b_in, t.segment.expert, column, n, w.bias + at);
    });
  if (t.segment.rows <= rows_unpacked(hidden_weights<S>(p, t, 0)))
    return few_rows_of_hidden<S>(p, t, w);
  t.columns.for_parts(t.i0, t.n, p.I, [&](int64_t column, int64_t n, int64_t at) {
    pack_deep(hidden_weights<S>(p, t, column), p.H, n, w.weights + at * pad_depth<E>(p.H));
  });
  for_token_blocks(t.segment.first, t.segment.rows, [&](int64_t first, int64_t rows) {
    const MatrixA<E> x = operand_matrix<E>(p.x, first);
    for (int64_t k0 = 0; k0 < p.H; k0 += kDepthBlock)
      t.columns.for_parts(t.i0, t.n, p.I, [&](int64_t, int64_t n, int64_t at) {
        multiply_block<E>(columns_from(x, k0), rows, w.weights + at * pad_depth<E>(p.H), k0,
                          at_most(kDepthBlock, p.H - k0), n, w.product + at, kHiddenWidth);
      });
    finish_hidden<S>(p, t, first, rows, w);
  });
}

// ---- backward

template <class S>
struct GradHiddenScratch {
  using T = Accumulate<S>;
  using E = Operand<S>;
  E* weights;
  T* grad_activated;

  GradHiddenScratch(const HiddenParams& p, Arena& arena) {
    weights = arena.take<E>(pad_depth<E>(p.H) * kHiddenBlock);
    grad_activated = arena.take<T>(kTokenBlock * kHiddenBlock);
  }
};

/// Gradients of one row's gate and up, w·h, and this block's part of h·dh.
template <class S, class Act>
void grad_row(const HiddenParams& p, const HiddenTask& t, int64_t position,
              const Accumulate<S>* grad_activated, const Act& act) {
  using T = Accumulate<S>;
  using E = Operand<S>;
  using V = Native<T>;
  using Math = ActivationMath<E>;
  const int64_t column = t.columns.first(t.i0);
  const T* const hidden = static_cast<const T*>(p.hidden) + position * p.width() + column;
  E* const activated =
      p.activated ? static_cast<E*>(p.activated) + position * p.row_width + t.i0 : nullptr;
  E* const grad_hidden =
      p.need_grad ? static_cast<E*>(p.grad_hidden) + position * p.grad_width + column : nullptr;
  const T weight = static_cast<const T*>(p.weights)[p.permutation[position]];
  V dot{};
  for_lanes<T>(t.n, [&](int64_t c, int64_t lanes) {
    const GateUp<V> x = t.columns.template load<V>(hidden, p.I, c, lanes);
    const Curve<V> a = act.template curve<Math>(x.gate);
    const V up = p.gated ? act.template up<Math>(x.up) : splat<V>(1), h = a.value * up;
    if (activated) store_lanes(activated + c, h * weight, lanes);
    if (!grad_hidden) return;
    const V dh = load_lanes<V>(grad_activated + c, lanes);
    dot = madd(h, dh, dot);
    const V weighted = dh * weight;
    t.columns.store(grad_hidden, p.I, c, lanes,
                    GateUp<V>{weighted * up * a.slope,
                              act.template through_up<Math>(weighted * a.value, x.up)});
  });
  if (grad_hidden) static_cast<T*>(p.dots)[position * p.dot_parts + t.block] = sum(dot);
}

template <class S>
void grad_rows(const HiddenParams& p, const HiddenTask& t, int64_t first, int64_t rows,
               const Accumulate<S>* grad_activated) {
  with_activation(p.activation, [&](const auto& act) {
    for (int64_t r = 0; r < rows; ++r)
      grad_row<S>(p, t, first + r, grad_activated + r * kHiddenBlock, act);
  });
}

template <class S>
void grad_hidden_task(const HiddenParams& p, int64_t task, void* scratch) {
  using E = Operand<S>;
  Arena arena(scratch);
  GradHiddenScratch<S> w(p, arena);
  const HiddenTask t(p, task);
  const Segment segment = t.segment;
  const Strided<S> weights = matrix_of<S>(p.w_out, segment.expert, 0, t.i0);
  if (p.need_grad && segment.rows <= rows_unpacked(weights)) {
    multiply_few<E>(operand_matrix<E>(p.grad, segment.first), segment.rows, weights, p.H, t.n,
                    w.grad_activated, kHiddenBlock);
    return grad_rows<S>(p, t, segment.first, segment.rows, w.grad_activated);
  }
  if (p.need_grad) pack_deep(weights, p.H, t.n, w.weights);
  for_token_blocks(segment.first, segment.rows, [&](int64_t first, int64_t rows) {
    for (int64_t k0 = 0; p.need_grad && k0 < p.H; k0 += kDepthBlock)
      multiply_block<E>(columns_from(operand_matrix<E>(p.grad, first), k0), rows, w.weights, k0,
                        at_most(kDepthBlock, p.H - k0), t.n, w.grad_activated, kHiddenBlock);
    grad_rows<S>(p, t, first, rows, w.grad_activated);
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
