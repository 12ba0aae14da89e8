// Matrices laid out in every way that a kernel takes.
#pragma once

#include "elements.h"
#include "moe/cpu/kernels/params.h"

namespace fulgurite {

enum class Order { kRows, kColumns, kGaps };
inline constexpr Order kOrders[] = {Order::kRows, Order::kColumns, Order::kGaps};

struct Table {
  int64_t rows, columns, row_stride, column_stride;
  Elements x;

  Table(Dtype dtype, int64_t rows, int64_t columns, Order order, int seed, double size = 1)
      : rows(rows),
        columns(columns),
        row_stride(order == Order::kRows      ? columns
                   : order == Order::kColumns ? 1
                                              : 2 * columns + 3),
        column_stride(order == Order::kRows      ? 1
                      : order == Order::kColumns ? rows
                                                 : 2),
        x(Elements::sines(dtype, (rows + 1) * (2 * columns + 3), seed, size)) {}
  double operator()(int64_t r, int64_t c) const { return x[r * row_stride + c * column_stride]; }
  void set(int64_t r, int64_t c, double value) { x.set(r * row_stride + c * column_stride, value); }
  Matrix matrix() const { return {x.data(), row_stride, column_stride}; }
};

}  // namespace fulgurite
