// Gradients of attention's gradients. With h the gradients that come in for dQ, dK, dV, dbias and dsink, the scalar
//
//   Φ = Σ hQ∘dQ + Σ hK∘dK + Σ hV∘dV + Σ hb∘dbias + Σ hσ·dsink
//
// is the derivative of Σ dO∘O + Σ g_lse·lse as the inputs move in the direction h (a dot below), and its gradient is wanted:
//
//   x = scale·Q·Kᵀ    ẋ = scale·(hQ·Kᵀ + Q·hKᵀ)    s = f(x) + bias − alibi    ṡ = f'∘ẋ + hb       f: the softcap
//   A = z∘(dO·Vᵀ)     Ȧ = z∘(dO·hVᵀ)               P, Ṗ, S = ∂Φ/∂ṡ, E = ∂Φ/∂s: double_backward_weights.h
//   Y = ∂Φ/∂ẋ = S∘f'  X = ∂Φ/∂x = E∘f' + S∘f''∘ẋ   z: dropout's factors
//
//   of dO     (z∘P)·hV + (z∘Ṗ)·V        of Q      scale·(X·K + Y·hK)        of bias   Σ E over its broadcast dims
//   of g_lse  lsė                       of K      scale·(Xᵀ·Q + Yᵀ·hQ)      of sink   Σ E of the sink
//                                       of V      (z∘Ṗ)ᵀ·dO
//
// A tile holds some query rows and every key in their reach, so that its sums over keys are whole and no lse is read.
// Tiles follow one another: every sum has one order, and memory is that of one tile.
#include "attention/double_backward.h"

#include "attention/check.h"
#include "attention/double_backward_weights.h"
#include "attention/score_tiles.h"
#include "common/check_choice.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

namespace fulgurite {
namespace {

constexpr int64_t kTileRows = 128;  // over the query heads that share a key head

/// A factor of products in the accumulation type, (heads, rows, ·) or (keys, ·); undefined: not given. As it is it enters sums
/// along its width, which belong to one pair each; into sums over pairs, where 0 times a NaN or infinity would leave pairs that
/// are not kept, it goes with zeros in their place.
struct Factor {
  Tensor all{}, finite{};

  Factor() = default;
  explicit Factor(const Tensor& t) : all(t) {
    if (t.defined()) finite = t.nan_to_num(0.0, 0.0, 0.0);
  }
  Factor narrow(int64_t begin, int64_t size) const {
    Factor part;
    if (all.defined()) part.all = all.narrow(0, begin, size);
    if (all.defined()) part.finite = finite.narrow(0, begin, size);
    return part;
  }
};

/// Of a tile's query rows.
struct Rows {
  Factor query, gg_query, grad_out;
  Tensor grad_lse;
};

/// Of keys. Every tile adds to the gradients.
struct Keys {
  Factor key, gg_key, value, gg_value;
  Tensor grad_key{}, grad_value{};

  Keys narrow(int64_t begin, int64_t size) const {
    const auto part = [&](const Tensor& t) { return t.defined() ? t.narrow(0, begin, size) : t; };
    return {key.narrow(begin, size),
            gg_key.narrow(begin, size),
            value.narrow(begin, size),
            gg_value.narrow(begin, size),
            part(grad_key),
            part(grad_value)};
  }
};

/// NaN into a sum over pairs where a kept pair brought what is not finite. `kept`: (…, sum's rows, pairs), 1 and 0; the factors:
/// (pairs, width). For factors whose NaN does not reach their pairs' weights: it stays in its column.
void mark_reached(const Tensor& sum, const Tensor& kept, std::initializer_list<Factor> factors) {
  Tensor bad;
  for (const Factor& f : factors) {
    if (!f.all.defined()) continue;
    const Tensor own = f.all.ne(f.finite);
    bad = bad.defined() ? bad.logical_or_(own) : own;
  }
  sum.masked_fill_(kept.matmul(bad.to(kept.scalar_type())).gt(0),
                   std::numeric_limits<double>::quiet_NaN());
}

/// Σ aᵢ·bᵢ over the products whose factors were given; undefined if there are none.
Tensor sum_of_products(std::initializer_list<std::pair<Tensor, Tensor>> products) {
  Tensor sum;
  for (const auto& [a, b] : products) {
    if (!a.defined() || !b.defined()) continue;
    const Tensor product = a.matmul(b);
    sum = sum.defined() ? sum.add_(product) : product;
  }
  return sum;
}

Tensor transposed(const Tensor& t) { return t.defined() ? t.mT() : t; }

/// (heads, rows, ·) as (heads·rows, ·): what is summed over query rows is summed over their heads too.
Tensor flat(const Tensor& t) { return t.defined() ? t.flatten(0, 1) : t; }
Factor flat(const Factor& f) {
  Factor flattened;
  flattened.all = flat(f.all);
  flattened.finite = flat(f.finite);
  return flattened;
}

class DoubleBackward {
 public:
  explicit DoubleBackward(const AttentionDoubleBackwardArgs& args);
  AttentionDoubleGradients run();

 private:
  void add_head(int64_t b, int64_t head);
  void add_tile(const RowTile& tile, const Rows& rows, const Keys& keys, const Tensor& hidden);
  void add_scores(const RowTile& tile, const Rows& rows, const Keys& keys, const Pairs& p,
                  const Weights& w);

  Rows rows_of(const RowTile& tile) const;
  Pairs pairs_of(const RowTile& tile, const Rows& rows, const Keys& keys,
                 const Tensor& hidden) const;
  void finish_scores(const RowTile& tile, Pairs& p) const;
  Weights weights_of(const RowTile& tile, const Rows& rows, const Pairs& p) const;

  Tensor wide(const OptionalTensor& t) const { return t ? t->to(wide_.dtype()) : Tensor(); }
  /// A result, or where it is summed; undefined if nobody asks for it.
  Tensor zeros(DoubleBackwardInput input, bool wide) const {
    if (!args_.output_mask[input]) return Tensor();
    const Tensor like = *args_.input(input);
    return at::zeros(like.sizes(), wide ? wide_ : like.options());
  }

  const AttentionDoubleBackwardArgs& args_;
  const int64_t N_, group_;
  const double scale_;
  const at::TensorOptions wide_;  // of the accumulation type
  const ScoreTiles tiles_;
  Tensor sink_, gg_sink_;  // wide, (Hq, 1, 1)
  Tensor grad_grad_out_, grad_grad_lse_, grad_query_, grad_key_, grad_value_;
  Tensor grad_bias_, grad_sink_;  // wide
};

DoubleBackward::DoubleBackward(const AttentionDoubleBackwardArgs& args)
    : args_(args),
      N_(args.query.size(2)),
      group_(args.key.size(1) ? args.query.size(1) / args.key.size(1) : 0),
      scale_(attention_scale(args.scores.scale, args.query)),
      wide_(accumulate_options(args.query)),
      tiles_(args.scores, N_, args.key.size(2), wide_),
      grad_grad_out_(zeros(kOfGradOut, false)),
      grad_grad_lse_(zeros(kOfGradLse, true)),
      grad_query_(zeros(kOfQuery, false)),
      grad_key_(zeros(kOfKey, false)),
      grad_value_(zeros(kOfValue, false)),
      grad_bias_(zeros(kOfBias, true)),
      grad_sink_(zeros(kOfSink, true)) {
  if (args.scores.sink) sink_ = wide(args.scores.sink).view({-1, 1, 1});
  if (args.grads[kSink]) gg_sink_ = wide(args.grads[kSink]).view({-1, 1, 1});
}

AttentionDoubleGradients DoubleBackward::run() {
  if (group_ > 0)
    for (int64_t b = 0; b < args_.key.size(0); ++b)
      for (int64_t head = 0; head < args_.key.size(1); ++head) add_head(b, head);
  const auto result = [&](DoubleBackwardInput input, const Tensor& t) {
    if (!t.defined()) return at::empty({0}, args_.query.options());
    return t.to(args_.input(input)->scalar_type());
  };
  return {result(kOfGradOut, grad_grad_out_), result(kOfGradLse, grad_grad_lse_),
          result(kOfQuery, grad_query_),      result(kOfKey, grad_key_),
          result(kOfValue, grad_value_),      result(kOfBias, grad_bias_),
          result(kOfSink, grad_sink_)};
}

/// Everything of one key/value head and the query heads that share it.
void DoubleBackward::add_head(int64_t b, int64_t head) {
  const auto rows = [&](const OptionalTensor& t) {
    return Factor(t ? wide(t->select(0, b).select(0, head)) : Tensor());
  };
  Keys keys{rows(args_.key), rows(args_.grads[kKey]), rows(args_.value), rows(args_.grads[kValue])};
  if (grad_key_.defined()) keys.grad_key = at::zeros(keys.key.all.sizes(), wide_);
  if (grad_value_.defined()) keys.grad_value = at::zeros(keys.value.all.sizes(), wide_);
  const int64_t at_once = std::max<int64_t>(1, kTileRows / group_);
  for (int64_t i = 0; i < N_; i += at_once) {
    const RowTile t = tiles_.tile(b, head * group_, group_, i, std::min(at_once, N_ - i));
    add_tile(t, rows_of(t), keys.narrow(t.j, t.keys), tiles_.hidden(t));
  }
  if (grad_key_.defined()) grad_key_.select(0, b).select(0, head).copy_(keys.grad_key);
  if (grad_value_.defined()) grad_value_.select(0, b).select(0, head).copy_(keys.grad_value);
}

Rows DoubleBackward::rows_of(const RowTile& t) const {
  const auto rows = [&](const OptionalTensor& all) {
    if (!all) return Tensor();
    return wide(all->select(0, t.b).narrow(0, t.h, t.heads).narrow(1, t.i, t.rows));
  };
  Rows r{Factor(rows(args_.query)), Factor(rows(args_.grads[kQuery])), Factor(rows(args_.grad_out)),
         rows(args_.grad_lse)};
  if (r.grad_lse.defined()) r.grad_lse = r.grad_lse.unsqueeze(-1);
  return r;
}

Pairs DoubleBackward::pairs_of(const RowTile& t, const Rows& rows, const Keys& keys,
                               const Tensor& hidden) const {
  const auto products = [&](std::initializer_list<std::pair<Tensor, Tensor>> factors) {
    Tensor sum = sum_of_products(factors);
    if (!sum.defined()) return at::zeros({t.heads, t.rows, t.keys}, wide_);
    return sum.masked_fill_(hidden, 0);
  };
  const Tensor key = transposed(keys.key.all), gg_key = transposed(keys.gg_key.all);
  Pairs p;
  p.hidden = hidden;
  p.score = products({{rows.query.all, key}}).mul_(scale_);
  p.product_dot = products({{rows.gg_query.all, key}, {rows.query.all, gg_key}}).mul_(scale_);
  p.grad_weight = products({{rows.grad_out.all, transposed(keys.value.all)}});
  p.grad_weight_dot = products({{rows.grad_out.all, transposed(keys.gg_value.all)}});
  p.keep = tiles_.keep(t);
  if (p.keep.defined()) {
    p.grad_weight.mul_(p.keep);
    p.grad_weight_dot.mul_(p.keep);
  }
  finish_scores(t, p);
  return p;
}

/// From x and ẋ to s and ṡ.
void DoubleBackward::finish_scores(const RowTile& t, Pairs& p) const {
  const double cap = args_.scores.softcap;
  p.score_dot = p.product_dot;
  if (cap > 0) {
    const Tensor tanh = (p.score / cap).tanh_();
    p.score = tanh * cap;
    p.slope = 1 - tanh * tanh;
    p.curve = tanh * p.slope * (-2 / cap);
    p.score_dot = p.slope * p.product_dot;
  }
  p.score = tiles_.biased(p.score, t);
  if (const OptionalTensor& gg_bias = args_.grads[kBias])
    p.score_dot = (p.score_dot + part_of(*gg_bias, t)).masked_fill_(p.hidden, 0);
}

/// Weights and their derivatives, 0 at hidden pairs whatever stands there.
Weights DoubleBackward::weights_of(const RowTile& t, const Rows& rows, const Pairs& p) const {
  const ScoreArgs& scores = args_.scores;
  const auto of_heads = [&](const Tensor& all) {
    return all.defined() ? all.narrow(0, t.h, t.heads) : Tensor();
  };
  const ScoreKind kind = choice_of(kScoreKinds, scores.score);
  Weights w = kind == ScoreKind::kSoftmax
                  ? softmax_weights(p, rows.grad_lse, of_heads(sink_), of_heads(gg_sink_))
                  : activation_weights(p, kind, scores.score_scale);
  for (Tensor* pairs : {&w.weight, &w.weight_dot, &w.grad_score_dot, &w.grad_score})
    pairs->masked_fill_(p.hidden, 0);
  return w;
}

void DoubleBackward::add_tile(const RowTile& t, const Rows& rows, const Keys& keys,
                              const Tensor& hidden) {
  const Pairs p = pairs_of(t, rows, keys, hidden);
  const Weights w = weights_of(t, rows, p);
  const auto rows_in = [&](const Tensor& all) {
    return all.select(0, t.b).narrow(0, t.h, t.heads).narrow(1, t.i, t.rows);
  };
  if (grad_grad_lse_.defined() && w.lse_dot.defined())
    rows_in(grad_grad_lse_).copy_(w.lse_dot.squeeze(-1));
  if (grad_bias_.defined()) {
    const Tensor total = part_of(grad_bias_, t);
    total.add_(w.grad_score.sum_to_size(total.sizes()));
  }
  if (grad_sink_.defined()) grad_sink_.narrow(0, t.h, t.heads).add_(w.grad_sink.sum({1, 2}));
  if (grad_query_.defined() || grad_key_.defined()) add_scores(t, rows, keys, p, w);

  const Tensor weight = p.keep.defined() ? w.weight * p.keep : w.weight;
  const Tensor weight_dot = p.keep.defined() ? w.weight_dot * p.keep : w.weight_dot;
  const Tensor kept = hidden.logical_not().to(weight.scalar_type());
  if (grad_grad_out_.defined()) {
    const Tensor sum =
        sum_of_products({{weight, keys.gg_value.finite}, {weight_dot, keys.value.finite}});
    mark_reached(sum, kept, {keys.gg_value, keys.value});
    rows_in(grad_grad_out_).copy_(sum);
  }
  if (keys.grad_value.defined() && rows.grad_out.all.defined()) {
    const Factor grad_out = flat(rows.grad_out);
    const Tensor sum = flat(weight_dot).mT().matmul(grad_out.finite);
    mark_reached(sum, flat(kept.expand_as(weight)).mT(), {grad_out});
    keys.grad_value.add_(sum);
  }
}

/// What reaches query and key, through x and ẋ. Where one of their elements is not finite, so are x of its kept pairs.
void DoubleBackward::add_scores(const RowTile& t, const Rows& rows, const Keys& keys,
                                const Pairs& p, const Weights& w) {
  Tensor x = w.grad_score, y = w.grad_score_dot;
  if (p.slope.defined()) {
    x = (x * p.slope).add_(y * p.curve * p.product_dot);
    y = y * p.slope;
  }
  if (grad_query_.defined())
    grad_query_.select(0, t.b)
        .narrow(0, t.h, t.heads)
        .narrow(1, t.i, t.rows)
        .copy_(sum_of_products({{x, keys.key.finite}, {y, keys.gg_key.finite}}).mul_(scale_));
  if (keys.grad_key.defined())
    keys.grad_key.add_(sum_of_products({{flat(x).mT(), flat(rows.query).finite},
                                        {flat(y).mT(), flat(rows.gg_query).finite}}),
                       scale_);
}

}  // namespace

AttentionDoubleGradients attention_double_backward(const AttentionDoubleBackwardArgs& args) {
  check_attention_double_backward(args);
  // Products stay in the accumulation type where autocast would lower them.
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  return DoubleBackward(args).run();
}

}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, CompositeExplicitAutograd, m) {
  fulgurite::implement<fulgurite::attention_double_backward>(m);
}
