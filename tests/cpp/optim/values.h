// Numbers of a step and tensors to take it with.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "optim/cpu/kernels/params.h"

namespace fulgurite {
namespace {

inline AdamwScalars scalars() {
  AdamwScalars s{};
  s.grad_factor = 0.5;
  s.decay = 1 - 1e-3 * 0.01;
  s.exp_avg_weight = 0.1;
  s.from_exp_avg = true;
  s.exp_avg_sq_weight = 0.001;
  s.beta2 = 0.999;
  s.step_size = 1e-3 / (1 - 0.9 * 0.9);
  s.correction = std::sqrt(1 - 0.999 * 0.999);
  s.eps = 1e-8;
  return s;
}

struct Values {
  std::vector<float> p, g, m, v;

  explicit Values(int64_t n) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < n; ++i) {
      p.push_back(normal(random));
      g.push_back(normal(random));
      m.push_back(normal(random));
      v.push_back(std::fabs(normal(random)));
    }
  }
};

inline AdamwTensor descriptor(Values& x) {
  AdamwTensor t{};
  t.data[kParam] = x.p.data();
  t.data[kGrad] = x.g.data();
  t.data[kExpAvg] = x.m.data();
  t.data[kExpAvgSq] = x.v.data();
  for (Dtype& dtype : t.dtype) dtype = Dtype::kFloat32;
  for (uint8_t& bytes : t.bytes) bytes = 4;
  return t;
}

/// Lays the gradient of a matrix out transposed; returns the layouts of its walk, everything else being dense.
inline std::vector<int64_t> turn_gradient(Values& x, int64_t rows, int64_t columns) {
  std::vector<float> turned(x.g.size());
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c)
      turned[static_cast<size_t>(c * rows + r)] = x.g[static_cast<size_t>(r * columns + c)];
  x.g = turned;
  std::vector<int64_t> layouts{rows, columns};
  for (int k = 0; k < kAdamwOperands; ++k) layouts.push_back(k == kGrad ? 1 : columns);
  for (int k = 0; k < kAdamwOperands; ++k) layouts.push_back(k == kGrad ? rows : 1);
  return layouts;
}

}  // namespace
}  // namespace fulgurite
