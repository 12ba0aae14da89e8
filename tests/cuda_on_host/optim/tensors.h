// Lists of tensors to take a step with, twice: in memory of the executor for the kernels of CUDA, and beside it for those of the
// CPU, whose bits they must have.
#pragma once

#include <cmath>
#include <cstdio>
#include <deque>
#include <memory>
#include <random>

#include "cuda/host/memory.h"
#include "optim/cuda/table.h"

namespace fulgurite {

using cux::host::Array;

inline int failures = 0;

inline void expect(bool right, const char* what, const char* where) {
  if (right) return;
  std::printf("FAILED %s: %s\n", where, what);
  ++failures;
}

enum class Master { kNone, kWide, kSplit };

/// A tensor's operands. Dtypes of those that are not there do not count.
struct Shape {
  int64_t n;
  Dtype param = Dtype::kFloat32, grad = Dtype::kFloat32;
  Dtype exp_avg = Dtype::kFloat32, exp_avg_sq = Dtype::kFloat32;
  Master master = Master::kNone;
  bool amsgrad = false, ema = false, has_copy = false, stochastic = false;
  Dtype copy = Dtype::kBFloat16, max_exp_avg_sq = Dtype::kFloat32;
  int64_t columns =
      0;  // of a matrix that the gradient has transposed and the parameter with gaps; 0: all dense
  int64_t shift = 0;   // elements that the operands begin after a multiple of 16 bytes
  bool quiet = false;  // gradients of 0, and codes near it
  bool codes = false;  // moments of 8 bits
};

inline size_t bytes_of(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

/// Equal bits, or NaN in both: which NaN an operation makes is the processor's own.
inline bool same(const unsigned char* a, const unsigned char* b, size_t bytes, Dtype dtype,
                 bool number) {
  if (memcmp(a, b, bytes) == 0) return true;
  if (!number) return false;
  const auto is_nan = [&](const unsigned char* at) {
    uint32_t bits = 0;
    memcpy(&bits, at, bytes);
    if (dtype == Dtype::kBFloat16) bits <<= 16;
    if (dtype == Dtype::kFloat16) return (bits & 0x7fff) > 0x7c00;
    return (bits & 0x7fffffff) > 0x7f800000;
  };
  return is_nan(a) && is_nan(b);
}

/// Memory of one operand on both sides.
class Operand {
 public:
  Operand(size_t elements, size_t shift, size_t bytes, Dtype dtype, bool number)
      : here_((elements + shift) * bytes),
        bytes_(bytes),
        shift_(shift),
        dtype_(dtype),
        number_(number) {}

  void set(size_t i, float x) {
    unsigned char* const at = here_.data() + (shift_ + i) * bytes_;
    const uint16_t bits =
        dtype_ == Dtype::kBFloat16 ? cux::host::bfloat16_of(x) : cux::host::float16_of(x);
    if (bytes_ == 4)
      memcpy(at, &x, 4);
    else
      memcpy(at, &bits, 2);
  }
  template <class T>
  void set_bits(size_t i, T bits) {
    memcpy(here_.data() + (shift_ + i) * bytes_, &bits, sizeof(T));
  }
  void upload() { there_ = std::make_unique<Array<unsigned char>>(here_); }
  void* here() { return here_.data() + shift_ * bytes_; }
  void* there() { return there_->data() + shift_ * bytes_; }
  size_t bytes() const { return bytes_; }
  Dtype dtype() const { return dtype_; }

  bool agrees() const {
    for (size_t at = 0; at < here_.size(); at += bytes_)
      if (!same(here_.data() + at, there_->data() + at, bytes_, dtype_, number_)) return false;
    return true;
  }

 private:
  std::vector<unsigned char> here_;
  std::unique_ptr<Array<unsigned char>> there_;
  size_t bytes_, shift_;
  Dtype dtype_;
  bool number_;
};

/// All tensors of a call.
class Tensors {
 public:
  Tensors(const std::vector<Shape>& shapes, unsigned seed) : random_(seed) {
    for (const Shape& shape : shapes) add(shape);
  }

  std::vector<AdamwTensor> here() { return descriptors(&Operand::here); }
  std::vector<AdamwTensor> there() { return descriptors(&Operand::there); }
  const std::vector<Walk>& walks() const { return walks_; }
  const std::vector<int64_t>& layouts() const { return layouts_; }
  int64_t positions() const { return position_; }
  size_t size() const { return walks_.size(); }

  /// Both sides have the same bits.
  void compare(const char* where) const {
    static const char* const names[] = {"param",          "grad",   "exp_avg", "exp_avg_sq",
                                        "max_exp_avg_sq", "master", "copy",    "ema"};
    for (size_t t = 0; t < operands_.size(); ++t)
      for (int k = 0; k < kIndex; ++k)
        if (operands_[t][k] && !operands_[t][k]->agrees()) {
          std::printf("FAILED %s: %s of tensor %zu (%ld elements) has other bits\n", where,
                      names[k], t, walks_[t].numel);
          ++failures;
          return;
        }
  }
  /// Bytes that a step reads and writes.
  uint64_t bytes_read = 0, bytes_written = 0;

 private:
  using Operands = std::unique_ptr<Operand>[kIndex];

  void add(const Shape& s) {
    const auto rows = s.columns ? s.n / s.columns : 0;
    const int64_t gap = 3;
    const auto extent = [&](int k) {
      return static_cast<size_t>(s.columns && k == kParam ? rows * (s.columns + gap) : s.n);
    };
    auto& own = operands_.emplace_back();
    AdamwTensor tensor{};
    const auto put = [&](int k, bool there, Dtype dtype, size_t bytes, bool number) {
      tensor.dtype[k] = dtype;
      if (!there) return;
      own[k] =
          std::make_unique<Operand>(extent(k), static_cast<size_t>(s.shift), bytes, dtype, number);
      tensor.bytes[k] = static_cast<uint8_t>(bytes);
    };
    put(kParam, true, s.param, bytes_of(s.param), true);
    put(kGrad, true, s.grad, bytes_of(s.grad), true);
    put(kExpAvg, true, s.exp_avg, s.codes ? 1 : bytes_of(s.exp_avg), !s.codes);
    put(kExpAvgSq, true, s.exp_avg_sq, s.codes ? 1 : bytes_of(s.exp_avg_sq), !s.codes);
    put(kMaxExpAvgSq, s.amsgrad, s.max_exp_avg_sq, bytes_of(s.max_exp_avg_sq), true);
    const bool split = s.master == Master::kSplit;
    put(kMaster, s.master != Master::kNone, Dtype::kFloat32, split ? 2 : 4, !split);
    put(kCopy, s.has_copy, s.copy, bytes_of(s.copy), true);
    put(kEma, s.ema, Dtype::kFloat32, 4, true);
    tensor.split = split;
    tensor.stochastic = s.stochastic;
    tensor.key = static_cast<uint32_t>(7 * walks_.size() + 1);
    tensor.scalars = static_cast<int32_t>(walks_.size());
    tensors_.push_back(tensor);
    fill(own, s);
    add_walk(s, rows, s.columns + gap);
    count_bytes(own, s);
  }

  void fill(Operands& own, const Shape& s) {
    std::normal_distribution<float> normal;
    for (int k = 0; k < kIndex; ++k) {
      if (!own[k]) continue;
      const size_t n = k == kParam && s.columns
                           ? static_cast<size_t>(s.n / s.columns * (s.columns + 3))
                           : static_cast<size_t>(s.n);
      for (size_t i = 0; i < n; ++i) {
        const float x = normal(random_);
        const bool is_square = k == kExpAvgSq || k == kMaxExpAvgSq;
        if (own[k]->bytes() == 1) {
          const auto code = static_cast<uint8_t>(random_());
          own[k]->set_bits(i, s.quiet ? static_cast<uint8_t>(124 + code % 8) : code);
        } else if (k == kMaster && s.master == Master::kSplit) {
          own[k]->set_bits(i, static_cast<int16_t>(random_()));
        } else if (k == kGrad && s.quiet) {
          own[k]->set(i, 0.f);
        } else if (k == kGrad && i % 37 == 5) {
          static const float odd[] = {0.f, -0.f, INFINITY, 1e-41f, 3e38f, NAN};
          own[k]->set(i, odd[s.codes ? i / 37 % 2 : i / 37 % 6]);
        } else {
          own[k]->set(
              i, is_square ? std::fabs(x) * 1e-3f : x * std::pow(4.f, static_cast<float>(i % 5)));
        }
      }
      own[k]->upload();
    }
  }

  void add_walk(const Shape& s, int64_t rows, int64_t pitch) {
    Walk walk{position_, s.n, 0, 0};
    if (s.columns) {
      walk.dims = 2;
      walk.layout = static_cast<int64_t>(layouts_.size());
      layouts_.insert(layouts_.end(), {rows, s.columns});
      for (int k = 0; k < kAdamwOperands; ++k)
        layouts_.push_back(k == kParam ? pitch : k == kGrad ? 1 : s.columns);
      for (int k = 0; k < kAdamwOperands; ++k) layouts_.push_back(k == kGrad ? rows : 1);
    }
    position_ += (s.n + kBlock - 1) / kBlock * kBlock;
    walks_.push_back(walk);
  }

  void count_bytes(const Operands& own, const Shape& s) {
    for (int k = 0; k < kIndex; ++k) {
      if (!own[k]) continue;
      const auto bytes = static_cast<uint64_t>(s.n) * own[k]->bytes();
      const bool from_master = k == kParam && s.master == Master::kWide;
      if (k != kCopy && !from_master) bytes_read += bytes;
      if (k != kGrad) bytes_written += bytes;
    }
  }

  std::vector<AdamwTensor> descriptors(void* (Operand::*data)()) {
    std::vector<AdamwTensor> result = tensors_;
    for (size_t t = 0; t < result.size(); ++t)
      for (int k = 0; k < kIndex; ++k)
        result[t].data[k] = operands_[t][k] ? (*operands_[t][k].*data)() : nullptr;
    return result;
  }

  std::mt19937 random_;
  std::deque<Operands> operands_;
  std::vector<AdamwTensor> tensors_;
  std::vector<Walk> walks_;
  std::vector<int64_t> layouts_;
  int64_t position_ = 0;
};

}  // namespace fulgurite
