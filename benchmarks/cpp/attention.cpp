// One batch entry of contiguous heads: packing, forward, the three steps of the backward, decoding, rotary positions.
#include <algorithm>

#include "attention/cpu/kernels/decode.h"
#include "attention/plan.h"
#include "bench.h"
#include "common/ceil_div.h"

namespace fulgurite {

FULGURITE_KERNEL(attention_forward, attention_pack, AttentionTaskFn);
FULGURITE_KERNEL(attention_forward, attention_forward, AttentionTaskFn);
FULGURITE_KERNEL(attention_forward, attention_forward_layout, AttentionLayoutFn);
FULGURITE_KERNEL(attention_backward, attention_backward_layout, AttentionLayoutFn);
FULGURITE_KERNEL(attention_backward, attention_delta, AttentionTaskFn);
FULGURITE_KERNEL(attention_backward, attention_backward, AttentionTaskFn);
FULGURITE_KERNEL(attention_backward, attention_reduce_query, AttentionTaskFn);
FULGURITE_KERNEL(attention_decode, attention_decode, DecodeTaskFn);
FULGURITE_KERNEL(attention_decode, attention_decode_layout, DecodeLayoutFn);
FULGURITE_KERNEL(attention_rope, attention_rope, RopeTaskFn);

namespace {

using bench::Memory;

constexpr int64_t kHeads = 4;

struct Shape {
  int64_t N, D;
  bool causal;

  std::string text() const {
    return "4 heads, N " + std::to_string(N) + ", D " + std::to_string(D) +
           (causal ? ", causal" : "");
  }
  double pairs() const {
    const auto n = static_cast<double>(N);
    return kHeads * (causal ? n * (n + 1) / 2 : n * n);
  }
  /// Of one product of every kept pair with D numbers.
  double product() const { return 2 * pairs() * static_cast<double>(D); }
};

/// Softmax over products and nothing else.
AttentionParams plain_params(Dtype dtype, int64_t Hq, int64_t Hkv, int64_t D) {
  AttentionParams p{};
  p.dtype = dtype;
  p.Hq = Hq;
  p.Hkv = Hkv;
  p.group = Hq / Hkv;
  p.D = p.Dv = D;
  p.scale = p.score_unit = 0.1;
  p.plain_scores = true;
  p.rule.window_left = p.rule.window_right = -1;
  p.bottom_right = true;
  p.batch_stride = 1;
  return p;
}

/// N queries and as many keys, every buffer that a pass needs, and what the plan says for one pass.
class Problem {
 public:
  AttentionParams p;
  AttentionLayout layout{};

  Problem(Dtype dtype, const Shape& s)
      : p(plain_params(dtype, kHeads, kHeads, s.D)),
        elements_(kHeads * s.N * s.D),
        rows_{0, s.N * s.D, s.D, 1},
        query_(dtype, elements_),
        key_(dtype, elements_),
        value_(dtype, elements_),
        out_(bench::bytes_of(dtype) * elements_),
        lse_(bench::bytes_of(accumulated()) * kHeads * s.N) {
    p.rule.causal = s.causal;
    p.query = tensor(query_);
    p.key = tensor(key_);
    p.value = tensor(value_);
    p.out = {out_.data(), {0, s.N * s.D, s.D}};
    p.lse = {lse_.data(), {0, s.N, 1}};
    attention_forward_layout_kernel.get(dtype)(p, &layout);
    attention_backward_layout_kernel.get(dtype)(p, &layout);
  }
  Dtype accumulated() const { return bench::accumulate(p.dtype); }
  int64_t blocks() const { return p.query_blocks * p.Hq; }
  int64_t key_tasks() const { return p.key_blocks * p.Hkv; }

 protected:
  void cut(int64_t N, int64_t query_rows) {
    plan_ = AttentionPlan({query_rows, kKeyBlock, layout.key_multiple});
    plan_.add_batch(1, N, N);
    plan_.describe(p);
  }
  Tensor4 tensor(const Memory& memory) const {
    return {memory.data(), {rows_[0], rows_[1], rows_[2], rows_[3]}};
  }
  void* room(int64_t bytes) {
    memory_.emplace_back(bytes);
    return memory_.back().data();
  }

  AttentionPlan plan_{BlockLimits{}};
  int64_t elements_, rows_[4];
  Memory query_, key_, value_, out_, lse_;
  std::vector<Memory> memory_;
};

class Forward : public Problem {
 public:
  Forward(Dtype dtype, const Shape& s) : Problem(dtype, s) {
    cut(s.N, layout.forward_rows);
    const int64_t keys = plan_.packed_keys() * p.Hkv;
    p.key_transposed = room(keys * layout.key_transposed);
    p.value_rows = room(keys * layout.value_rows);
    p.key_finite = static_cast<bool*>(room(2 * key_tasks()));
    p.value_finite = p.key_finite + key_tasks();
  }
};

/// After the forward, and after δ.
class Backward : public Problem {
 public:
  Backward(Dtype dtype, const Shape& s)
      : Problem(dtype, s), grad_out_(dtype, elements_), parts_(kHeads * kQueryParts) {
    forward(dtype, s);
    cut(s.N, layout.backward_rows);
    p.packs_in_tasks = true;
    p.saved_out = tensor(out_);
    p.saved_lse = {lse_.data(), {0, s.N, 1, 0}};
    p.grad_out = tensor(grad_out_);
    for (Output4* const grad : {&p.grad_query, &p.grad_key, &p.grad_value})
      *grad = {room(bench::bytes_of(dtype) * elements_), {0, s.N * s.D, s.D}};
    p.query_block_rows = p.sequences[0].query_rows;
    const int64_t wide = bench::bytes_of(accumulated());
    p.delta = room(wide * blocks() * p.query_block_rows);
    p.query_finite = static_cast<bool*>(room(2 * blocks()));
    p.grad_out_finite = p.query_finite + blocks();
    p.coarse_rows = static_cast<int64_t*>(room(8));
    p.tiles_done = static_cast<int64_t*>(room(8 * key_tasks()));
    for (void*& part : parts_) part = room(wide * s.N * layout.query_part);
    p.query_parts = parts_.data();
  }
  /// Tasks wait for what earlier ones count here.
  void start() { std::fill_n(p.tiles_done, key_tasks(), 0); }

 private:
  void forward(Dtype dtype, const Shape& s) {
    Forward forward(dtype, s);
    forward.p.out = p.out;
    forward.p.lse = p.lse;
    bench::run_tasks(attention_pack_kernel.get(dtype), forward.p, forward.key_tasks(), Memory(0));
    bench::run_tasks(attention_forward_kernel.get(dtype), forward.p, forward.blocks(),
                     Memory(forward.layout.forward_scratch));
  }

  Memory grad_out_;
  std::vector<void*> parts_;
};

void measure_forward(bench::Bench& bench, Dtype dtype, const Shape& s) {
  if (!bench.wants({&attention_pack_kernel, &attention_forward_kernel}, dtype, s.text())) return;
  const Forward problem(dtype, s);
  const AttentionParams& p = problem.p;
  const Memory scratch(problem.layout.forward_scratch);
  const auto pack = attention_pack_kernel.get(dtype);
  const auto forward = attention_forward_kernel.get(dtype);
  const double read = static_cast<double>(2 * kHeads * s.N * s.D * bench::bytes_of(dtype));
  bench::run_tasks(pack, p, problem.key_tasks(), scratch);
  bench.time(attention_pack_kernel, dtype, s.text(), bench::bytes(read),
             [&] { bench::run_tasks(pack, p, problem.key_tasks(), scratch); });
  bench.time(attention_forward_kernel, dtype, s.text(), bench::flops(2 * s.product()),
             [&] { bench::run_tasks(forward, p, problem.blocks(), scratch); });
}

void measure_backward(bench::Bench& bench, Dtype dtype, const Shape& s) {
  if (!bench.wants(
          {&attention_delta_kernel, &attention_backward_kernel, &attention_reduce_query_kernel},
          dtype, s.text()))
    return;
  Backward problem(dtype, s);
  const AttentionParams& p = problem.p;
  const Memory scratch(
      std::max(problem.layout.backward_scratch, problem.layout.reduce_query_scratch));
  const auto delta = attention_delta_kernel.get(dtype);
  const auto backward = attention_backward_kernel.get(dtype);
  const auto reduce = attention_reduce_query_kernel.get(dtype);
  const auto elements = static_cast<double>(kHeads * s.N * s.D);
  bench::run_tasks(delta, p, problem.blocks(), scratch);
  bench.time(attention_delta_kernel, dtype, s.text(),
             bench::bytes(2 * elements * static_cast<double>(bench::bytes_of(dtype))),
             [&] { bench::run_tasks(delta, p, problem.blocks(), scratch); });
  const auto run = [&] {
    problem.start();
    bench::run_tasks(backward, p, problem.key_tasks(), scratch);
  };
  run();
  bench.time(attention_backward_kernel, dtype, s.text(), bench::flops(5 * s.product()), run);
  bench.time(attention_reduce_query_kernel, dtype, s.text(),
             bench::bytes(kQueryParts * elements *
                          static_cast<double>(bench::bytes_of(problem.accumulated()))),
             [&] { bench::run_tasks(reduce, p, problem.blocks(), scratch); });
}

/// One query of each of four heads on one key/value head.
void measure_decode(bench::Bench& bench, Dtype dtype, int64_t M) {
  constexpr int64_t D = 128, kSplit = 4 * kKeyBlock;
  const Memory query(dtype, kHeads * D), key(dtype, M * D), value(dtype, M * D);
  DecodeParams d{};
  AttentionParams& p = d.attention;
  p = plain_params(dtype, kHeads, 1, D);
  p.query = {query.data(), {0, D, D, 1}};
  p.key = {key.data(), {0, 0, D, 1}};
  p.value = {value.data(), {0, 0, D, 1}};
  d.page = M;
  d.rows = kHeads;
  d.split_keys = kSplit;
  AttentionLayout layout{};
  attention_forward_layout_kernel.get(dtype)(p, &layout);
  AttentionPlan plan({layout.forward_rows, kKeyBlock, layout.key_multiple});
  plan.add_splits(1, M, kSplit);
  plan.describe(p);
  DecodeLayout of_decode{};
  attention_decode_layout_kernel.get(dtype)(d, &of_decode);
  const int64_t wide = bench::bytes_of(bench::accumulate(dtype)), rows = p.key_blocks * kHeads;
  const Memory acc(wide * rows * of_decode.acc_row), max(wide * rows), sum(wide * rows);
  d.acc = acc.data();
  d.max = max.data();
  d.sum = sum.data();
  const Memory scratch(of_decode.scratch);
  const auto decode = attention_decode_kernel.get(dtype);
  bench.time(attention_decode_kernel, dtype, "4 queries, M " + std::to_string(M) + ", D 128",
             bench::bytes(static_cast<double>(2 * M * D * bench::bytes_of(dtype))),
             [&] { bench::run_tasks(decode, d, p.key_blocks, scratch); });
}

void measure_rope(bench::Bench& bench, Dtype dtype, int64_t N) {
  constexpr int64_t D = 128, R = D;
  const int64_t elements = kHeads * N * D, size = bench::bytes_of(dtype);
  const Memory x(dtype, elements), cos(dtype, N * R / 2), sin(dtype, N * R / 2),
      out(size * elements);
  RopeParams p{};
  p.dtype = dtype;
  p.float32_tables = dtype == Dtype::kFloat32;
  p.D = D;
  p.R = R;
  p.dims = 2;
  const int64_t sizes[] = {kHeads, N}, strides[] = {N * D, D}, of_tables[] = {0, R / 2};
  for (int d = 0; d < p.dims; ++d) {
    p.sizes[d] = sizes[d];
    p.x_strides[d] = strides[d];
    p.cos_strides[d] = p.sin_strides[d] = of_tables[d];
  }
  p.x_column_stride = p.cos_column_stride = p.sin_column_stride = 1;
  p.x = x.data();
  p.cos = cos.data();
  p.sin = sin.data();
  p.out = out.data();
  const auto rope = attention_rope_kernel.get(dtype);
  bench.time(attention_rope_kernel, dtype, "4 heads, N " + std::to_string(N) + ", D 128",
             bench::bytes(static_cast<double>(2 * elements * size)),
             [&] { rope(p, 0, kHeads * N); });
}

}  // namespace
}  // namespace fulgurite

int main(int argc, char** argv) {
  using namespace fulgurite;
  bench::Bench bench(argc, argv);
  bench.for_sets([&] {
    for (const Dtype dtype :
         {Dtype::kFloat64, Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16}) {
      for (const Shape& s : bench.shapes<Shape>(
               {{64, 64, false}, {512, 64, false}, {512, 128, true}, {2048, 64, true}})) {
        measure_forward(bench, dtype, s);
        measure_backward(bench, dtype, s);
      }
      for (const int64_t M : bench.shapes<int64_t>({512, 16384})) measure_decode(bench, dtype, M);
      for (const int64_t N : bench.shapes<int64_t>({64, 2048})) measure_rope(bench, dtype, N);
    }
  });
  return bench.finish();
}
