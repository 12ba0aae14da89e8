// What the tasks of linear attention's backward leave, added up.
#include "catch.h"
#include "elements.h"
#include "linear/cpu/kernels/linear_params.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
LinearAttentionSumsFn linear_attention_decay_sums, linear_attention_bonus_sums,
    linear_attention_query_sums, linear_attention_key_sums;
}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite

using namespace fulgurite;

namespace {

constexpr int64_t B = 2, H = 3, N = 19, D = 70, kSequences = 4;

void check(Dtype dtype, bool float32, bool of_heads) {
  const Dtype sums = accumulate(dtype), type = float32 ? Dtype::kFloat32 : dtype;
  LinearAttentionBackwardParams p{};
  p.dtype = dtype;
  p.B = B;
  p.H = H;
  p.N = N;
  p.D = D;
  p.sequences = kSequences;
  p.log_decay.float32 = p.bonus.float32 = float32 || dtype == Dtype::kFloat32;
  p.decay_of_heads = of_heads;
  Elements parts = Elements::sines(sums, p.units() * B * H * N, 3),
           bonus_parts = Elements::sines(sums, kSequences * H * D, 4);
  Elements decays(type, of_heads ? H : B * H * N), bonus(type, H * D);
  p.decay_sums = parts.data();
  p.bonus_sums = bonus_parts.data();
  p.grad_log_decay = decays.data();
  p.grad_bonus = bonus.data();
  const int64_t rows = of_heads ? H : B * H;
  FULGURITE_VARIANT::linear_attention_decay_sums(p, 0, 1);
  FULGURITE_VARIANT::linear_attention_decay_sums(p, 1, rows);
  FULGURITE_VARIANT::linear_attention_bonus_sums(p, 0, 2);
  FULGURITE_VARIANT::linear_attention_bonus_sums(p, 2, H);
  const auto part = [&](int64_t row, int64_t t) {
    double sum = 0;
    for (int64_t u = 0; u < p.units(); ++u) sum += parts[(u * B * H + row) * N + t];
    return sum;
  };
  for (int64_t h = 0; h < H; ++h) {
    double total = 0;
    for (int64_t b = 0; b < B; ++b)
      for (int64_t t = 0; t < N; ++t) {
        total += part(b * H + h, t);
        if (!of_heads) REQUIRE(near(type, decays[(b * H + h) * N + t], part(b * H + h, t), 1e-6));
      }
    if (of_heads) REQUIRE(near(type, decays[h], total, 1e-6));
    for (int64_t d = 0; d < D; ++d) {
      double sum = 0;
      for (int64_t s = 0; s < kSequences; ++s) sum += bonus_parts[(s * H + h) * D + d];
      REQUIRE(near(type, bonus[h * D + d], sum, 1e-6));
    }
  }
}

}  // namespace

TEST_CASE("gradients of decays and of the bonus are sums of their parts") {
  for (const Dtype dtype : kDtypes)
    for (const bool of_heads : {false, true}) {
      check(dtype, false, of_heads);
      if (dtype != Dtype::kFloat64) check(dtype, true, of_heads);
    }
}

TEST_CASE("gradients of query and key are sums over the parts of a large group") {
  for (const Dtype dtype : kDtypes) {
    LinearAttentionBackwardParams p{};
    p.dtype = dtype;
    p.B = B;
    p.H = 2 * (kHeadsAtOnce + 1);
    p.Hk = 2;
    p.N = 5;
    p.M = 7;
    p.D = 9;
    const int64_t queries = B * p.Hk * p.N * p.D, keys = B * p.Hk * p.M * p.D;
    Elements query_sums = Elements::sines(accumulate(dtype), 2 * queries, 5),
             key_sums = Elements::sines(accumulate(dtype), 2 * keys, 6);
    Elements query(dtype, queries), key(dtype, keys);
    p.query_sums = query_sums.data();
    p.key_sums = key_sums.data();
    p.grad_query = query.data();
    p.grad_key = key.data();
    FULGURITE_VARIANT::linear_attention_query_sums(p, 0, 3);
    FULGURITE_VARIANT::linear_attention_query_sums(p, 3, queries / p.D);
    FULGURITE_VARIANT::linear_attention_key_sums(p, 0, keys / p.D);
    for (int64_t i = 0; i < queries; ++i)
      REQUIRE(near(dtype, query[i], query_sums[i] + query_sums[queries + i]));
    for (int64_t i = 0; i < keys; ++i)
      REQUIRE(near(dtype, key[i], key_sums[i] + key_sums[keys + i]));
  }
}
