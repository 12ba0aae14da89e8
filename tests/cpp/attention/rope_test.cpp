// Rotation of rows by their angles, in both layouts, against plain loops.
#include "attention/cpu/kernels/params.h"
#include "catch.h"
#include "stored.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
RopeTaskFn attention_rope;
}  // namespace FULGURITE_VARIANT

TEST_CASE("pairs are rotated, the rest passes through") {
  constexpr int64_t kHeads = 2, kRows = 5;
  const int64_t D = GENERATE(int64_t{8}, int64_t{45}), R = D / 4 * 2;
  const bool interleaved = GENERATE(false, true), conjugate = GENERATE(false, true);
  const Rows x = numbers<Rows>(kHeads * kRows * D, 1), cos = numbers<Rows>(kRows * R / 2, 2),
             sin = numbers<Rows>(kRows * R / 2, 3);
  Rows out(x.size());
  RopeParams p{};
  p.dtype = kDtype;
  p.interleaved = interleaved;
  p.conjugate = conjugate;
  p.D = D;
  p.R = R;
  p.dims = 2;  // heads share the angles of a row
  p.sizes[0] = kHeads;
  p.sizes[1] = kRows;
  p.x_strides[0] = kRows * D;
  p.x_strides[1] = D;
  p.cos_strides[1] = p.sin_strides[1] = R / 2;
  p.x_column_stride = p.cos_column_stride = p.sin_column_stride = 1;
  p.x = x.data();
  p.cos = cos.data();
  p.sin = sin.data();
  p.out = out.data();
  FULGURITE_VARIANT::attention_rope(p, 0, 7);
  FULGURITE_VARIANT::attention_rope(p, 7, kHeads * kRows);

  for (int64_t row = 0; row < kHeads * kRows; ++row) {
    for (int64_t i = 0; i < R / 2; ++i) {
      const int64_t first = row * D + (interleaved ? 2 * i : i),
                    second = first + (interleaved ? 1 : R / 2), angle = row % kRows * (R / 2) + i;
      const double c = cos[angle], s = conjugate ? -sin[angle] : double(sin[angle]);
      REQUIRE(near(out[first], x[first] * c - x[second] * s));
      REQUIRE(near(out[second], x[second] * c + x[first] * s));
    }
    for (int64_t d = R; d < D; ++d) REQUIRE(out[row * D + d] == x[row * D + d]);
  }
}

}  // namespace fulgurite
