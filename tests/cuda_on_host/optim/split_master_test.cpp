// Masters to halves and back: the CPU's bits, at every edge of a unit and wherever memory begins.
#include "optim/cuda/kernels/split_master.cuh"

#include "optim/cpu/kernels/params.h"
#include "tensors.h"
#include "traffic.h"

namespace fulgurite::baseline {
SplitTaskFn split_master, join_master;
}

using namespace fulgurite;

namespace {

std::vector<float> numbers(int64_t n) {
  std::mt19937 random(static_cast<unsigned>(n));
  std::vector<float> x;
  for (int64_t i = 0; i < n; ++i)
    x.push_back(same_bits<float>(static_cast<uint32_t>(random())));  // NaN and infinities too
  return x;
}

template <class T, class U>
bool same_bytes(const std::vector<T>& a, const U& b) {
  return memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

void check(int64_t n, int64_t shift) {
  const auto all = static_cast<size_t>(n + shift);
  std::vector<float> master = numbers(n + shift), back(all);
  std::vector<uint16_t> high(all);
  std::vector<int16_t> low(all);
  const Array<float> card_master(master), card_back(back);
  const Array<uint16_t> card_high(high);
  const Array<int16_t> card_low(low);
  baseline::split_master({master.data() + shift, high.data() + shift, low.data() + shift}, 0, n);
  baseline::join_master({back.data() + shift, high.data() + shift, low.data() + shift}, 0, n);
  const auto run = [&](void (*kernel)(cuda::SplitMasterProblem), float* to) {
    const cux::Error error = cuda::launch_split(
        kernel, {{to + shift, card_high.data() + shift, card_low.data() + shift}, n}, nullptr);
    expect(!error, error ? error : "", "a launch");
  };
  run(cuda::split_master, card_master.data());
  run(cuda::join_master, card_back.data());
  expect(same_bytes(high, card_high) && same_bytes(low, card_low), "halves", "split_master");
  expect(same_bytes(back, card_back), "masters", "join_master");
}

void check_traffic() {
  cux::host::settings().counts_file = "/dev/null";
  check(2048, 0);  // counts are of join_master
  const auto read = traffic(false), written = traffic(true);
  expect(read.bytes == 4 * 2048 && written.bytes == 4 * 2048, "bytes", "traffic");
  expect(read.bytes_a_lane == 16 && written.bytes_a_lane == 16, "16 bytes a lane", "traffic");
  expect(read.moves == read.ideal_moves && written.moves == written.ideal_moves, "sectors",
         "traffic");
}

}  // namespace

int main() {
  auto& settings = cux::host::settings();
  settings.every_schedule = settings.check;
  for (const int64_t n : {0, 1, 31, 32, 33, 255, 256, 257, 2047, 2049}) check(n, 0);
  for (const int64_t shift : {1, 2, 5}) check(600, shift);
  check_traffic();
  std::printf("%d checks failed\n", failures);
  return failures != 0;
}
