// The micro-kernel and packing against a product in long double, at every row count of the tile ladder and odd sizes.
#include "simd/gemm.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "catch.h"
#include "simd/gemm_store.h"
#include "simd/unpacked.h"

using namespace fulgurite;
namespace set = fulgurite::FULGURITE_VARIANT;

// Products of bfloat16 in pairs and tiles are compiled for that type alone, and float64 is left to sets that serve it.
#if defined(FULGURITE_TEST_BFLOAT16)
#define PRODUCT_TYPES BFloat16
#define UNPACKED_TYPES (std::pair<BFloat16, BFloat16>)
#elif FULGURITE_FLOAT64
#define PRODUCT_TYPES float, double, BFloat16
#define UNPACKED_TYPES                                                                  \
  (std::pair<double, double>), (std::pair<float, float>), (std::pair<BFloat16, float>), \
      (std::pair<Half, float>)
#else
#define PRODUCT_TYPES float, BFloat16
#define UNPACKED_TYPES \
  (std::pair<float, float>), (std::pair<BFloat16, float>), (std::pair<Half, float>)
#endif

namespace {

template <class T>
std::vector<T> numbers(int64_t count, int seed) {
  std::vector<T> v(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i)
    v[static_cast<size_t>(i)] = set::from_accumulate<T>(
        static_cast<Accumulate<T>>(std::sin(seed + 1.3 * static_cast<double>(i))));
  return v;
}

template <class T>
struct Product {
  using Sum = Accumulate<T>;
  static constexpr int64_t kStep = set::kStep<T>;
  int64_t M, N, K;
  bool transposed_a;
  int64_t depth = set::pad_depth<T>(K);
  std::vector<T> a = numbers<T>(M * depth, 1), b = numbers<T>(K * N, 2),
                 panels = std::vector<T>(static_cast<size_t>(set::pad_columns<T>(N) * depth));

  set::MatrixA<T> matrix_a() const {
    return transposed_a ? set::MatrixA<T>{a.data(), kStep, kStep * M}
                        : set::MatrixA<T>{a.data(), depth, kStep};
  }
  Sum a_at(int64_t m, int64_t k) const {
    const int64_t at = transposed_a ? (k / kStep * M + m) * kStep + k % kStep : m * depth + k;
    return set::to_accumulate(a[static_cast<size_t>(at)]);
  }
  Sum b_at(int64_t k, int64_t n) const {
    return set::to_accumulate(b[static_cast<size_t>(k * N + n)]);
  }
  int64_t ldc() const { return set::pad_columns<T>(N); }

  std::vector<Sum> run(int64_t rows, bool accumulate) {
    set::pack_rows<T>(set::Strided<T>{b.data(), N, 1}, K, N, panels.data());
    std::vector<Sum> c(static_cast<size_t>(M * ldc()), Sum(0.5));
    set::gemm<T>(rows, N, set::steps<T>(K), matrix_a(), {panels.data(), depth, ldc()}, c.data(),
                 ldc(), accumulate);
    return c;
  }
};

}  // namespace

TEMPLATE_TEST_CASE("products are right at every size, both ways of A, both ways of C", "[gemm]",
                   PRODUCT_TYPES) {
  using T = TestType;
  using Sum = Accumulate<T>;
  for (const int64_t M : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 29, 32, 45})
    for (const int64_t N : {1, 5, 16, 33, 70})
      for (const int64_t K : {0, 1, 7, 64, 299})
        for (const bool transposed : {false, true}) {
          Product<T> p{M, N, K, transposed};
          const std::vector<Sum> set_c = p.run(M, false), added_c = p.run(M, true);
          double worst = 0;
          for (int64_t m = 0; m < M; ++m)
            for (int64_t n = 0; n < N; ++n) {
              long double exact = 0, size = 0;
              for (int64_t k = 0; k < K; ++k) {
                const long double term = static_cast<long double>(p.a_at(m, k)) * p.b_at(k, n);
                exact += term;
                size += std::abs(term);
              }
              // A chain of K roundings, one more for the sum with C.
              const long double unit = std::numeric_limits<Sum>::epsilon() / 2,
                                bound = (static_cast<long double>(2 * K) + 2) * unit * (size + 1);
              const size_t i = static_cast<size_t>(m * p.ldc() + n);
              worst = std::max(worst, static_cast<double>(std::abs(set_c[i] - exact) / bound));
              worst =
                  std::max(worst, static_cast<double>(std::abs(added_c[i] - exact - 0.5L) / bound));
            }
          INFO(M << "x" << N << "x" << K << (transposed ? ", A transposed" : ""));
          CHECK(worst <= 1);
        }
}

TEMPLATE_TEST_CASE("a row's bits do not depend on how many rows are beside it", "[gemm]",
                   PRODUCT_TYPES) {
  using T = TestType;
  using Sum = Accumulate<T>;
  Product<T> p{37, 37, 50, false};
  const std::vector<Sum> all = p.run(37, false);
  for (int64_t rows = 1; rows < 37; ++rows)
    CHECK(std::memcmp(all.data(), p.run(rows, false).data(),
                      sizeof(Sum) * static_cast<size_t>(rows * p.ldc())) == 0);
}

TEMPLATE_TEST_CASE("rows past M are not written", "[gemm]", PRODUCT_TYPES) {
  using Sum = Accumulate<TestType>;
  Product<TestType> p{13, 20, 9, false};
  const std::vector<Sum> c = p.run(7, false);
  for (size_t i = static_cast<size_t>(7 * p.ldc()); i < c.size(); ++i) CHECK(c[i] == Sum(0.5));
}

TEMPLATE_TEST_CASE("a product that is stored is the sum, rounded once", "[gemm]", PRODUCT_TYPES) {
  using T = TestType;
  using Sum = Accumulate<T>;
  constexpr int64_t ld = 150;
  for (const int64_t M : {1, 5, 6, 13, 32})
    for (const int64_t N : {1, 15, 16, 17, 33, 64, 70, 140})
      for (const int64_t K : {1, 7, 64})
        for (const bool accumulate : {false, true}) {
          Product<T> p{M, N, K, false};
          const std::vector<Sum> c = p.run(M, accumulate);
          std::vector<Sum> sums(c.size(), Sum(0.5));
          std::vector<T> to(static_cast<size_t>(M * ld), set::from_accumulate<T>(Sum(-2)));
          set::gemm_store<T>(M, N, set::steps<T>(K), p.matrix_a(),
                             {p.panels.data(), p.depth, p.ldc()}, sums.data(), p.ldc(), accumulate,
                             to.data(), ld);
          bool same = true;
          for (int64_t m = 0; m < M; ++m)
            for (int64_t n = 0; n < ld; ++n) {
              const Sum stored = set::to_accumulate(to[static_cast<size_t>(m * ld + n)]);
              const Sum sum = n < N ? c[static_cast<size_t>(m * p.ldc() + n)] : Sum(-2);
              same = same && stored == set::to_accumulate(set::from_accumulate<T>(sum));
            }
          INFO(M << "x" << N << "x" << K << (accumulate ? ", after sums" : ""));
          CHECK(same);
        }
}

#if !FULGURITE_TILE_PRODUCTS
TEMPLATE_TEST_CASE("a B that is not packed gives the same bits", "[gemm]", UNPACKED_TYPES) {
  using S = typename TestType::first_type;   // stored
  using T = typename TestType::second_type;  // multiplied
  using Sum = Accumulate<T>;
  const std::vector<S> stored = numbers<S>(70 * 140, 3);
  for (int64_t M = 1; M <= 13; ++M)
    for (const int64_t N : {1, 16, 33, 135})
      for (const int64_t K : {1, 7, 32, 65})
        for (const bool rows : {true, false})
          for (const bool accumulate : {false, true}) {
            const int64_t padded = set::pad_columns<T>(N), depth = set::pad_depth<T>(K);
            const set::Strided<S> b{stored.data(), rows ? 140 : 1, rows ? 1 : 70};
            std::vector<T> a = numbers<T>(M * depth, 1),
                           panels(static_cast<size_t>(padded * depth));
            for (int64_t m = 0; m < M && depth > K; ++m)
              a[static_cast<size_t>((m + 1) * depth - 1)] = T{};
            std::vector<Sum> packed(static_cast<size_t>(M * padded), Sum(0.5)), in_place = packed;
            const set::MatrixA<T> matrix_a{a.data(), depth, set::kStep<T>};
            set::pack_rows<T>(b, K, N, panels.data());
            set::gemm<T>(M, N, set::steps<T>(K), matrix_a, {panels.data(), depth, padded},
                         packed.data(), padded, accumulate);
            set::multiply_unpacked<T>(M, N, K, matrix_a, b, in_place.data(), padded, accumulate);
            INFO("M " << M << ", N " << N << ", K " << K << ", rows " << rows);
            CHECK(std::memcmp(packed.data(), in_place.data(), packed.size() * sizeof(Sum)) == 0);
          }
  CHECK(set::rows_unpacked(set::Strided<S>{stored.data(), 9, 1}) > 0);
  CHECK(set::rows_unpacked(set::Strided<S>{stored.data(), 1, 9}) > 0);
  CHECK(set::rows_unpacked(set::Strided<S>{stored.data(), 9, 2}) == 0);
}
#endif

TEMPLATE_TEST_CASE("packing puts every element in its place and zero in the padding", "[pack]",
                   (std::pair<double, double>), (std::pair<float, float>),
                   (std::pair<BFloat16, float>), (std::pair<Half, float>),
                   (std::pair<BFloat16, BFloat16>)) {
  using S = typename TestType::first_type;   // stored
  using T = typename TestType::second_type;  // packed
  constexpr int64_t NR = set::kPanelColumns<T>, kStep = set::kStep<T>;
  const T mark = set::from_accumulate<T>(99);
  struct Strides {
    int64_t row, column;
  };
  for (const int64_t K : {1, 4, 8, 13, 33})
    for (const int64_t N : {1, 7, 16, 35, 70})
      for (const Strides s : {Strides{40, 1}, Strides{1, 40}, Strides{83, 2}}) {
        // B[k][n] at k·row + n·column; its transpose as a matrix of N rows has the strides exchanged.
        const std::vector<S> stored = numbers<S>(40 * 84, 3);
        const set::Strided<S> b{stored.data(), s.row, s.column};
        const int64_t padded = set::pad_columns<T>(N), depth = set::pad_depth<T>(K);
        std::vector<T> rows(static_cast<size_t>(padded * depth) + 1, mark), transposed = rows;
        set::pack_rows<T>(b, K, N, rows.data());
        set::pack_transposed<T>(b.transposed(), N, K, transposed.data());
        int wrong = 0;
        for (int64_t k = 0; k < depth; ++k)
          for (int64_t n = 0; n < padded; ++n) {
            const Accumulate<S> expected =
                k < K && n < N
                    ? set::to_accumulate(stored[static_cast<size_t>(k * s.row + n * s.column)])
                    : 0;
            const int64_t first = n / NR * NR, width = std::min(NR, padded - first);
            const size_t at = static_cast<size_t>(
                first * depth + (k / kStep * width + n - first) * kStep + k % kStep);
            wrong += set::to_accumulate(rows[at]) != expected ||
                     set::to_accumulate(transposed[at]) != expected;
          }
        INFO("K " << K << ", N " << N << ", strides " << s.row << ", " << s.column);
        CHECK(wrong == 0);
        CHECK(set::to_accumulate(rows.back()) == 99);
        CHECK(set::to_accumulate(transposed.back()) == 99);
      }
}

TEMPLATE_TEST_CASE("plain copies are padded with zeros to their stride", "[pack]",
                   (std::pair<double, double>), (std::pair<float, float>),
                   (std::pair<BFloat16, float>), (std::pair<Half, float>),
                   (std::pair<BFloat16, BFloat16>)) {
  using S = typename TestType::first_type;
  using T = typename TestType::second_type;
  const std::vector<S> stored = numbers<S>(40 * 40, 4);
  for (const int64_t n : {1, 8, 19})
    for (const int64_t column_stride : {1, 2}) {
      const int64_t ld = set::pad_columns<T>(n);
      std::vector<T> to(static_cast<size_t>(5 * ld), set::from_accumulate<T>(99));
      set::pack_plain<T>(set::Strided<S>{stored.data(), 40, column_stride}, 5, n, to.data(), ld);
      int wrong = 0;
      for (int64_t r = 0; r < 5; ++r)
        for (int64_t c = 0; c < ld; ++c)
          wrong +=
              set::to_accumulate(to[static_cast<size_t>(r * ld + c)]) !=
              (c < n ? set::to_accumulate(stored[static_cast<size_t>(r * 40 + c * column_stride)])
                     : 0);
      CHECK(wrong == 0);
    }
}
