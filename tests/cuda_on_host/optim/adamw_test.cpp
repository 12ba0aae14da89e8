// AdamW's launches have the CPU's bits: dtypes, masters, averages, copies and rounding in lists that cross every edge of units,
// warps and blocks, in every schedule; and they move the bytes of the formula, 16 a lane.
#include "optim/cuda/kernels/adamw.cuh"

#include "step.h"
#include "traffic.h"

namespace fulgurite::baseline {
AdamwTaskFn adamw_update;
}

using namespace fulgurite;

namespace {

constexpr Dtype kFloat32 = Dtype::kFloat32, kBFloat16 = Dtype::kBFloat16,
                kFloat16 = Dtype::kFloat16;

void run(const char* where, const std::vector<Shape>& shapes, const StepOptions& options = {}) {
  Tensors tensors(shapes, static_cast<unsigned>(shapes.size()));
  Step step(tensors, options);
  step.run_there([](const cuda::AdamwUpdateProblem& p) { return cuda::launch_update(p, nullptr); });
  step.run_here([&](const AdamwProblem& p) { baseline::adamw_update(p, 0, tensors.positions()); });
  step.compare(where);
}

/// The list with each size of it.
std::vector<Shape> sizes_of(Shape shape) {
  std::vector<Shape> shapes;
  for (const int64_t n : {1, 0, 31, 33, 255, 256, 257, 1100}) {
    shape.n = n;
    shapes.push_back(shape);
  }
  return shapes;
}

void check_dtypes() {
  for (const Dtype param : {kFloat32, kBFloat16, kFloat16})
    for (const Dtype grad : {kFloat32, kBFloat16, kFloat16}) {
      Shape shape{};
      shape.param = param;
      shape.grad = grad;
      shape.exp_avg = param == kFloat32 ? kFloat32 : kBFloat16;
      shape.exp_avg_sq = grad == kFloat16 ? kBFloat16 : kFloat32;
      run("dtypes", sizes_of(shape));
    }
}

void check_masters() {
  for (const Dtype param : {kFloat32, kBFloat16, kFloat16})
    run("whole masters",
        sizes_of({.n = 0, .param = param, .grad = param, .master = Master::kWide}));
  for (const Dtype moment : {kFloat32, kBFloat16})
    run("split masters", sizes_of({.n = 0,
                                   .param = kBFloat16,
                                   .grad = kBFloat16,
                                   .exp_avg = moment,
                                   .exp_avg_sq = moment,
                                   .master = Master::kSplit}));
}

void check_options() {
  const Shape all{.n = 0,
                  .param = kBFloat16,
                  .grad = kFloat32,
                  .master = Master::kSplit,
                  .amsgrad = true,
                  .ema = true,
                  .has_copy = true,
                  .max_exp_avg_sq = kBFloat16};
  run("everything", sizes_of(all));
  run("decay of the gradient", sizes_of(all), {.decoupled = false});
  run("no decay", sizes_of(all), {.weight_decay = 0, .decoupled = false});
  run("maximize", sizes_of({.n = 0}), {.maximize = true});
  run("zeros into gradients", sizes_of({.n = 0, .grad = kBFloat16}), {.zero_grads = true});
  run("a beta below a half", sizes_of({.n = 0}), {.beta1 = 0.25});
  run("a skipped step", sizes_of(all), {.found_inf = 2, .zero_grads = true});
  for (const Dtype copy : {kFloat32, kBFloat16, kFloat16})
    run("copies", sizes_of({.n = 0, .amsgrad = true, .has_copy = true, .copy = copy}));
}

void check_rounding() {
  for (const Dtype param : {kBFloat16, kFloat16}) {
    const Shape shape{.n = 0, .param = param, .grad = param, .stochastic = true};
    run("stochastic rounding", sizes_of(shape), {.seeded = true});
    run("stochastic rounding of strides",
        {{.n = 40 * 21, .param = param, .stochastic = true, .columns = 21}}, {.seeded = true});
  }
}

void check_memory() {
  for (const int64_t shift : {1, 2, 3, 7})
    run("misaligned",
        sizes_of({.n = 0, .param = kBFloat16, .master = Master::kSplit, .shift = shift}));
  for (const int64_t columns : {1, 3, 32, 256, 300})
    run("strides", {{.n = 7 * columns, .columns = columns},
                    {.n = 5 * columns,
                     .param = kBFloat16,
                     .grad = kFloat16,
                     .master = Master::kSplit,
                     .ema = true,
                     .columns = columns}});
}

/// Strided tensors are divided into rows and columns; no list here has 2³² elements.
void check_division() {
  std::mt19937_64 random(1);
  for (int i = 0; i < 1000; ++i) {
    const auto n = static_cast<int64_t>(random() >> (1 + i % 50)),
               d = static_cast<int64_t>(random() >> (1 + i / 20)) + 1;
    int64_t quotient = n;
    const int64_t rest = cuda::divide(quotient, d);
    expect(quotient == n / d && rest == n % d, "a quotient", "division");
  }
}

void check_lists() {
  std::vector<Shape> tiny;
  for (int i = 0; i < 70; ++i) tiny.push_back({.n = i % 5 == 4 ? 0 : 1 + i % 3});
  run("many tensors", tiny);
  run("one of several blocks",
      {{.n = 3}, {.n = 9000, .param = kBFloat16, .grad = kBFloat16}, {.n = 300}});
  run("none", {{.n = 0}});
}

void check_traffic(const char* where, const Shape& shape) {
  Tensors tensors({shape, shape}, 1);
  Step step(tensors, {});
  step.run_there([](const cuda::AdamwUpdateProblem& p) { return cuda::launch_update(p, nullptr); });
  const auto read = traffic(false), written = traffic(true);
  expect(read.bytes == tensors.bytes_read, "bytes read", where);
  expect(written.bytes == tensors.bytes_written, "bytes written", where);
  expect(read.bytes_a_lane == 16 && written.bytes_a_lane == 16, "16 bytes a lane", where);
  expect(read.moves == read.ideal_moves && written.moves == written.ideal_moves, "sectors", where);
}

void check_all_traffic() {
  cux::host::settings().counts_file = "/dev/null";
  check_traffic("float32", {.n = 2048});
  check_traffic("bfloat16", {.n = 2048,
                             .param = kBFloat16,
                             .grad = kBFloat16,
                             .exp_avg = kBFloat16,
                             .exp_avg_sq = kBFloat16});
  check_traffic("split",
                {.n = 2048, .param = kBFloat16, .grad = kBFloat16, .master = Master::kSplit});
  check_traffic("everything", {.n = 2048,
                               .param = kFloat16,
                               .grad = kBFloat16,
                               .master = Master::kWide,
                               .amsgrad = true,
                               .ema = true,
                               .has_copy = true});
}

void check_table() {
  const std::vector<unsigned char> none;
  std::vector<unsigned char> first(3 * cuda::kPieceBytes - 160), second;
  for (size_t i = 0; i < first.size(); ++i) first[i] = static_cast<unsigned char>(i * 7 + i / 256);
  const Array<unsigned char> memory(first.size());
  expect(!cuda::write_table(none, first, memory.data(), nullptr), "writing", "a table");
  expect(memcmp(memory.data(), first.data(), first.size()) == 0, "all bytes", "a table");
  second = first;
  second[5] ^= 1;
  memory[cuda::kPieceBytes + 3] ^= 1;  // a piece that is not written keeps this
  expect(!cuda::write_table(first, second, memory.data(), nullptr), "writing", "a changed table");
  expect(memory[5] == second[5], "the change", "a changed table");
  expect(memory[cuda::kPieceBytes + 3] != second[cuda::kPieceBytes + 3], "only what changed",
         "a table");
}

}  // namespace

int main() {
  auto& settings = cux::host::settings();
  settings.every_schedule = settings.check;
  check_table();
  check_dtypes();
  check_masters();
  check_options();
  check_rounding();
  check_memory();
  check_division();
  check_lists();
  check_all_traffic();
  std::printf("%d checks failed\n", failures);
  return failures != 0;
}
