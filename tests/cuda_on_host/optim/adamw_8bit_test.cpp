// AdamW with 8-bit states has the CPU's bits, its scales too, in every schedule, and moves the bytes of the formula.
#include "optim/cuda/kernels/adamw_8bit.cuh"

#include "optim/cuda/kernels/adamw.cuh"
#include "step.h"
#include "traffic.h"

namespace fulgurite::baseline {
Adamw8bitTaskFn adamw_8bit_update;
}

using namespace fulgurite;

namespace {

constexpr Dtype kFloat32 = Dtype::kFloat32, kBFloat16 = Dtype::kBFloat16,
                kFloat16 = Dtype::kFloat16;
const DynamicMap kMaps[] = {make_dynamic_map(true), make_dynamic_map(false)};

/// Both moments' scales of a list, every second number of memory.
class Scales {
 public:
  explicit Scales(const std::vector<Walk>& walks) : here_(numbers(walks)), there_(here_) {
    int64_t first = 0;
    for (const Walk& walk : walks) {
      first_.push_back(first);
      first += 4 * ((walk.numel + kBlock - 1) / kBlock);
    }
  }
  std::vector<BlockScales> here() { return scales(here_.data()); }
  std::vector<BlockScales> there() { return scales(there_.data()); }
  bool agree() const {
    for (size_t i = 0; i < here_.size(); ++i)
      if (!same(reinterpret_cast<const unsigned char*>(&here_[i]),
                reinterpret_cast<const unsigned char*>(&there_[i]), 4, kFloat32, true))
        return false;
    return true;
  }

 private:
  static std::vector<float> numbers(const std::vector<Walk>& walks) {
    std::vector<float> values;
    for (const Walk& walk : walks)
      for (int64_t block = 0; block * kBlock < walk.numel; ++block)
        for (int i = 0; i < 4; ++i)
          values.push_back(block % 3 == 2 ? 0.f : 0.01f * static_cast<float>(i + 1));
    return values;
  }
  std::vector<BlockScales> scales(float* data) const {
    std::vector<BlockScales> all;
    for (const int64_t first : first_) all.push_back({data + first, data + first + 1, 4, 4});
    return all;
  }

  std::vector<float> here_;
  Array<float> there_;
  std::vector<int64_t> first_;
};

uint64_t run(const char* where, const std::vector<Shape>& shapes, const StepOptions& options = {}) {
  Tensors tensors(shapes, static_cast<unsigned>(shapes.size()) + 1);
  Step step(tensors, options);
  Scales scales(tensors.walks());
  step.run_there(
      [](const cuda::AdamwUpdateProblem& p) { return cuda::launch_8bit_update(p, nullptr); }, kMaps,
      scales.there());
  step.run_here([&](const AdamwProblem& p) {
    const std::vector<BlockScales> own = scales.here();
    baseline::adamw_8bit_update({p, own.data(), &kMaps[0], &kMaps[1]}, 0, tensors.positions());
  });
  step.compare(where);
  expect(scales.agree(), "scales", where);
  return tensors.bytes_read;
}

std::vector<Shape> sizes_of(Shape shape) {
  std::vector<Shape> shapes;
  for (const int64_t n : {1, 0, 31, 33, 255, 256, 257, 1100}) {
    shape.n = n;
    shape.codes = true;
    shapes.push_back(shape);
  }
  return shapes;
}

void check_all() {
  for (const Dtype param : {kFloat32, kBFloat16, kFloat16})
    for (const Dtype grad : {kFloat32, kBFloat16, kFloat16})
      run("dtypes", sizes_of({.n = 0, .param = param, .grad = grad}));
  const Shape split{.n = 0, .param = kBFloat16, .grad = kBFloat16, .master = Master::kSplit};
  run("split masters", sizes_of(split));
  run("whole masters", sizes_of({.n = 0, .param = kFloat16, .master = Master::kWide}));
  run("decay of the gradient", sizes_of(split), {.decoupled = false});
  run("maximize", sizes_of(split), {.beta1 = 0.25, .maximize = true});
  run("a skipped step", sizes_of(split), {.found_inf = 1});
  run("a multiplier that makes NaN", sizes_of({.n = 0}), {.multiplier = NAN});
  run("lanes without an element", sizes_of({.n = 0, .quiet = true}));
  run("stochastic rounding", sizes_of({.n = 0, .param = kBFloat16, .stochastic = true}),
      {.seeded = true});
  Shape shifted = split;
  shifted.shift = 3;
  run("misaligned", sizes_of(shifted));
  for (const int64_t columns : {3, 100, 300})
    run("strides",
        {{.n = 9 * columns,
          .param = kBFloat16,
          .stochastic = true,
          .columns = columns,
          .codes = true}},
        {.seeded = true});
  run("one of several blocks", {{.n = 17000, .codes = true}, {.n = 300, .codes = true}});
}

void check_traffic() {
  cux::host::settings().counts_file = "/dev/null";
  const uint64_t bytes_read = run("traffic", {{.n = 2048, .codes = true}});
  const auto read = traffic(false), written = traffic(true);
  expect(read.bytes == bytes_read && read.bytes == 10 * 2048, "bytes read", "traffic");
  expect(written.bytes == 6 * 2048, "bytes written", "traffic");
  expect(read.bytes_a_lane == 8, "16 bytes a lane, and 8 of codes", "traffic");
  expect(read.moves == read.ideal_moves && written.moves == written.ideal_moves, "sectors",
         "traffic");
}

}  // namespace

int main() {
  auto& settings = cux::host::settings();
  settings.every_schedule = settings.check;
  check_all();
  check_traffic();
  std::printf("%d checks failed\n", failures);
  return failures != 0;
}
