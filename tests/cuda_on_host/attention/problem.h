// A call of attention for kernels on the host, with its tensors, and what it should give in float64 from ScoreRule::kept.
#pragma once

#include <cmath>
#include <cstdio>
#include <optional>
#include <random>
#include <vector>

#include "attention/cuda/params.h"
#include "attention/rules/activations.h"
#include "cuda/host/memory.h"
#include "cuda/launch.h"

namespace attention_test {

using namespace fulgurite;
using cux::host::Array;

inline float number(BFloat16 x) { return cux::host::float_of_bfloat16(x.bits); }
inline float number(Half x) { return cux::host::float_of_float16(x.bits); }
inline float number(float x) { return x; }
inline void assign(BFloat16& x, float v) { x.bits = cux::host::bfloat16_of(v); }
inline void assign(Half& x, float v) { x.bits = cux::host::float16_of(v); }
inline void assign(float& x, float v) { x = v; }

template <class T>
inline constexpr Dtype kDtypeOf = Dtype::kFloat32;
template <>
inline constexpr Dtype kDtypeOf<BFloat16> = Dtype::kBFloat16;
template <>
inline constexpr Dtype kDtypeOf<Half> = Dtype::kFloat16;
/// What a weight and a result are rounded by in T; in float32 a score's sum of products is, and exp makes it the weight's.
template <class T>
inline constexpr double kRounding = 0x1p-20;
template <>
inline constexpr double kRounding<BFloat16> = 0x1p-8;
template <>
inline constexpr double kRounding<Half> = 0x1p-11;

/// What a call is; the rest of it is made from this.
struct Call {
  int64_t B = 1, Hq = 2, Hkv = 1, N = 70, M = 70, D = 64, Dv = 64;
  bool causal = false, bottom_right = true;
  int64_t window_left = -1, window_right = -1, sink_tokens = 0, chunk_size = 0, block_size = 0;
  double softcap = 0, dropout_p = 0, score_scale = 1;
  double scale = 0;  // 0: 1/√D
  ScoreKind score = ScoreKind::kSoftmax;
  bool sink = false, slopes = false, mask = false, mask_of_keys = false, layout = false;
  enum Bias { kNone, kOwnType, kFloat32, kSame } bias = kNone;  // kSame: −bias_size everywhere
  int64_t bias_batches = 1;
  double bias_size = 1, query_size = 1;
  int64_t padding = 0;  // elements between rows; 4 leaves them at no multiple of 16 bytes
  int64_t column_stride = 1;
  bool infinite_key = false;  // key 3's values are infinite, and its key NaN
};

template <class T>
class Problem {
 public:
  explicit Problem(const Call& c)
      : call(c),
        random_(static_cast<unsigned>(c.N + 1000 * c.M + c.D)),
        query_(elements(c.Hq, c.N, c.D)),
        key_(elements(c.Hkv, c.M, c.D)),
        value_(elements(c.Hkv, c.M, c.Dv)),
        out(static_cast<size_t>(c.B * c.Hq * c.N * c.Dv)),
        lse(static_cast<size_t>(c.B * c.Hq * c.N)) {
    p.dtype = kDtypeOf<T>;
    p.Hq = c.Hq;
    p.Hkv = c.Hkv;
    p.group = c.Hq / c.Hkv;
    p.D = c.D;
    p.Dv = c.Dv;
    p.B = c.B;
    p.N = c.N;
    p.M = c.M;
    p.scale = c.scale != 0 ? c.scale : 1 / std::sqrt(static_cast<double>(c.D));
    p.softcap = c.softcap;
    p.score_scale = c.score_scale;
    p.score = c.score;
    p.plain_scores =
        c.score == ScoreKind::kSoftmax && p.scale > 0 && c.softcap == 0 && !c.bias && !c.slopes;
    p.query = fill(query_, c.Hq, c.N, c.D, c.query_size);
    p.key = fill(key_, c.Hkv, c.M, c.D, 1);
    p.value = fill(value_, c.Hkv, c.M, c.Dv, 1);
    if (c.infinite_key) spoil();
    set_rule();
    p.out = {out.data(), {c.Hq * c.N * c.Dv, c.N * c.Dv, c.Dv}};
    p.lse = {lse.data(), {c.Hq * c.N, c.N, 1}};
  }

  const Call call;
  AttentionCudaParams p{};

 private:
  std::mt19937 random_;
  const Array<T> query_, key_, value_;
  std::optional<Array<float>> sink_, slopes_, float_bias_;
  std::optional<Array<T>> own_bias_;
  std::optional<Array<uint8_t>> mask_, layout_;
  std::optional<Array<int64_t>> philox_;

 public:
  const Array<T> out;
  const Array<float> lse;

  float at(const Tensor4& t, int64_t b, int64_t h, int64_t i, int64_t d) const {
    return number(static_cast<const T*>(
        t.data)[b * t.strides[0] + h * t.strides[1] + i * t.strides[2] + d * t.strides[3]]);
  }

  /// A kept pair's score; the slope of the softcap.
  double score(int64_t b, int64_t h, int64_t i, int64_t j, double* slope = nullptr) const {
    double s = 0;
    for (int64_t d = 0; d < p.D; ++d)
      s += double{at(p.query, b, h, i, d)} * double{at(p.key, b, h / p.group, j, d)};
    s *= p.scale;
    if (p.softcap > 0) {
      const double u = std::tanh(s / p.softcap);
      if (slope) *slope = 1 - u * u;
      s = p.softcap * u;
    } else if (slope) {
      *slope = 1;
    }
    if (p.rule.bias.data) s += bias_at(p.rule.bias.offset(b, h, i, j));
    if (slopes_)
      s -= double{(*slopes_)[static_cast<size_t>(b * p.alibi_batch_stride + h)]} *
           static_cast<double>(std::abs(i + p.rule.shift - j));
    return s;
  }
  /// The weight of a score that is not normalised.
  double activated(double s) const {
    if (p.score == ScoreKind::kRelu2) return p.score_scale * std::pow(std::max(0., s), 2);
    return p.score_scale * 0.5 * (1 + std::erf((s - kSqrtHalf) * kSqrtTwoPi));
  }
  double keep_factor(int64_t b, int64_t h, int64_t i, int64_t j) const {
    if (p.dropout_p == 0) return 1;
    const DropoutRule rule = make_dropout_rule(p.dropout_p, philox_->data(), p.philox_words);
    uint64_t words[4];
    rule.words(b, h, i, static_cast<uint64_t>(j / 4), words);
    return words[j % 4] < rule.threshold ? 0 : rule.inverse_keep;
  }
  double sink(int64_t h) const {
    return sink_ ? double{(*sink_)[static_cast<size_t>(h)]} : -INFINITY;
  }

  /// One row in float64: its lse and the weight of each key before dropout; out and Σ|weight·value| where wanted.
  struct Row {
    double lse = -INFINITY;
    std::vector<double> weights, out, size;
  };
  Row row(int64_t b, int64_t h, int64_t i) const {
    Row r;
    std::vector<double>& w = r.weights;
    w.assign(static_cast<size_t>(p.M), -INFINITY);
    double top = sink(h);
    for (int64_t j = 0; j < p.M; ++j)
      if (p.rule.kept(b, h, i, j)) {
        w[static_cast<size_t>(j)] = score(b, h, i, j);
        top = std::max(top, w[static_cast<size_t>(j)]);
      }
    if (p.score == ScoreKind::kSoftmax) {
      double sum = top == -INFINITY ? 0 : std::exp(sink(h) - top);
      for (double& x : w) sum += x = x == -INFINITY ? 0 : std::exp(x - top);
      for (double& x : w) x = sum == 0 ? 0 : x / sum;
      r.lse = sum == 0 ? -INFINITY : top + std::log(sum);
    } else {
      for (double& x : w) x = x == -INFINITY ? 0 : activated(x);
      r.lse = 0;
    }
    return r;
  }
  Row row_with_out(int64_t b, int64_t h, int64_t i) const {
    Row r = row(b, h, i);
    r.out.assign(static_cast<size_t>(p.Dv), 0);
    r.size = r.out;
    for (int64_t j = 0; j < p.M; ++j) {
      if (!p.rule.kept(b, h, i, j)) continue;
      const double weight = r.weights[static_cast<size_t>(j)] * keep_factor(b, h, i, j);
      for (int64_t d = 0; d < p.Dv; ++d) {
        const double x = weight * double{at(p.value, b, h / p.group, j, d)};
        r.out[static_cast<size_t>(d)] += x;
        r.size[static_cast<size_t>(d)] += std::fabs(x);
      }
    }
    return r;
  }

 private:
  size_t elements(int64_t heads, int64_t rows, int64_t width) const {
    return static_cast<size_t>(call.B * heads * rows * (width * call.column_stride + call.padding));
  }
  Tensor4 fill(const Array<T>& a, int64_t heads, int64_t rows, int64_t width, double size) {
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < a.size(); ++i) assign(a[i], normal(random_) * static_cast<float>(size));
    cux::host::written_by_host(a.data(), a.size() * sizeof(T));
    const int64_t row = width * call.column_stride + call.padding;
    return {a.data(), {heads * rows * row, rows * row, row, call.column_stride}};
  }
  void spoil() {
    for (int64_t d = 0; d < call.Dv; ++d)
      assign(value_[static_cast<size_t>(3 * p.value.strides[2] + d * p.value.strides[3])],
             INFINITY);
    assign(key_[static_cast<size_t>(3 * p.key.strides[2])], NAN);
  }
  double bias_at(int64_t at) const {
    return own_bias_ ? double{number((*own_bias_)[static_cast<size_t>(at)])}
                     : double{(*float_bias_)[static_cast<size_t>(at)]};
  }

  /// Contiguous in these sizes; dimensions of one element broadcast.
  static ScoreTensor tensor(const void* data, int64_t b, int64_t h, int64_t n, int64_t m) {
    const int64_t sizes[] = {b, h, n, m};
    ScoreTensor t{data, b, {}};
    int64_t stride = 1;
    for (int d = 3; d >= 0; --d) {
      t.strides[d] = sizes[d] == 1 ? 0 : stride;
      stride *= sizes[d];
    }
    return t;
  }
  std::vector<uint8_t> bits(int64_t n, unsigned one_in) {
    std::vector<uint8_t> b(static_cast<size_t>(n));
    for (uint8_t& x : b) x = random_() % one_in != 0;
    return b;
  }
  template <class S>
  std::vector<S> numbers(int64_t n, double size) {
    std::normal_distribution<float> normal;
    std::vector<S> v(static_cast<size_t>(n));
    for (S& x : v)
      assign(x, random_() % 9 ? normal(random_) * static_cast<float>(size) : -INFINITY);
    return v;
  }

  void set_rule() {
    const Call& c = call;
    ScoreRule& rule = p.rule;
    rule.M = c.M;
    p.bottom_right = c.bottom_right;
    rule.shift = c.bottom_right ? c.M - c.N : 0;
    rule.causal = c.causal;
    rule.window_left = c.window_left;
    rule.window_right = c.window_right;
    rule.sink_tokens = c.sink_tokens;
    rule.chunk_size = c.chunk_size;
    rule.block_size = c.block_size;
    if (c.mask) {
      mask_.emplace(bits(c.B * c.N * c.M, 4));
      rule.mask = tensor(mask_->data(), c.B, 1, c.N, c.M);
    }
    if (c.mask_of_keys) {
      mask_.emplace(bits(c.B * c.M, 3));
      rule.mask = tensor(mask_->data(), c.B, 1, 1, c.M);
    }
    if (c.layout) {
      const int64_t n = (c.N - 1) / c.block_size + 1, m = (c.M - 1) / c.block_size + 1;
      layout_.emplace(bits(c.Hq * n * m, 2));
      rule.layout = tensor(layout_->data(), 1, c.Hq, n, m);
    }
    set_bias();
    if (c.sink) {
      sink_.emplace(std::vector<float>{0.7f, -1.5f, 2.f, 0.f});
      p.sink = sink_->data();
    }
    if (c.slopes) {
      slopes_.emplace(std::vector<float>{0.25f, 0.0625f, 0.5f, 0.01f});
      p.alibi_slopes = slopes_->data();
    }
    p.dropout_p = c.dropout_p;
    if (c.dropout_p > 0) {
      philox_.emplace(std::vector<int64_t>{12345, 678, 2, 1});
      p.philox = philox_->data();
      p.philox_words = 4;
    }
  }
  void set_bias() {
    const Call& c = call;
    if (c.bias == Call::kNone) return;
    p.rule.bias_dtype = c.bias == Call::kOwnType ? p.dtype : Dtype::kFloat32;
    const int64_t n = c.bias_batches * c.Hq * c.N * c.M;
    if (c.bias == Call::kOwnType) own_bias_.emplace(numbers<T>(n, c.bias_size));
    if (c.bias == Call::kFloat32) float_bias_.emplace(numbers<float>(n, c.bias_size));
    if (c.bias == Call::kSame) {
      std::vector<float> v(static_cast<size_t>(n), -static_cast<float>(c.bias_size));
      float_bias_.emplace(v);
    }
    p.rule.bias =
        tensor(own_bias_ ? static_cast<const void*>(own_bias_->data()) : float_bias_->data(),
               c.bias_batches, c.Hq, c.N, c.M);
  }
};

}  // namespace attention_test
