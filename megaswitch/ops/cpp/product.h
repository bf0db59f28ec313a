// Products of small matrices on one thread, C[rows, columns] (+)= A[rows, depth] B[depth, columns].
//
// What is multiplied are operands: numbers as wide as the sums, or, of bfloat16 where the processor multiplies that,
// pairs of numbers that follow each other along the depth; a depth that is odd ends with a 0.
//
// A may lie in memory either way round. B is packed: panels of kPanel columns side by side, row after row, zeros where
// the last panel is wider than B. C's rows have room for whole panels. A tile of C, kRows x kPanel, stays in registers
// (24 of 32 with 512 bits, 12 of 16 with 256) while the depth passes: each row of it takes one load of A and none of C.
// A panel is N vectors wide: two where C is in the cache, so that small matrices fill panels; four where C comes from
// memory, of which a tile of fewer rows then takes longer stretches.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <array>
#include <cstdint>

#include "common.h"

namespace megaswitch {

#if defined(__AVX512BF16__) && defined(CPU_CAPABILITY_AVX512)
#define MEGASWITCH_PAIRS 1
#else
#define MEGASWITCH_PAIRS 0
#endif

// Two numbers in bfloat16, the first in the low half. They may take the place in memory of the sums that they were.
struct __attribute__((may_alias)) Pair {
  uint32_t bits;
};

template <typename T>
using operand_t = std::conditional_t<MEGASWITCH_PAIRS && std::is_same_v<T, c10::BFloat16>, Pair, wide_t<T>>;

template <typename E>
constexpr bool kPairs = std::is_same_v<E, Pair>;

template <typename E>
using sum_t = std::conditional_t<kPairs<E>, float, E>;

template <typename E>
constexpr int64_t kNumbers = kPairs<E> ? 2 : 1;

// Operands of so many numbers along the depth.
template <typename E>
constexpr int64_t operands(int64_t numbers) {
  return (numbers + kNumbers<E> - 1) / kNumbers<E>;
}

template <typename E>
using vector_t = at::vec::Vectorized<sum_t<E>>;

template <typename E, int N = 2>
constexpr int64_t kPanel = N * vector_t<E>::size();

template <typename E, int N = 2>
constexpr int kRows = (vector_t<E>::size() * sizeof(E) == 64 ? 24 : 12) / N;

// Columns rounded up to whole panels.
template <typename E, int N = 2>
inline int64_t padded(int64_t columns) {
  return (columns + kPanel<E, N> - 1) / kPanel<E, N> * kPanel<E, N>;
}

// A matrix in memory: the distances between its rows and between the operands of a row.
template <typename E>
struct Matrix {
  const E* data;
  int64_t row, step;
  Matrix rows_from(int64_t m) const { return {data + m * row, row, step}; }
  Matrix depth_from(int64_t d) const { return {data + d / kNumbers<E> * step, row, step}; }
};

// Panels in memory, each a number of rows of operands that may be more than those of the depth that is used.
template <typename E, int N = 2>
struct Packed {
  const E* data;
  int64_t rows;
  Packed depth_from(int64_t d) const { return {data + d / kNumbers<E> * kPanel<E, N>, rows}; }
  const E* panel(int64_t column) const { return data + column * rows; }
};

// A vector of operands; one of them repeated; a sum with the products of two.
template <typename W>
inline vector_t<W> load(const W* x) {
  return vector_t<W>::loadu(x);
}

template <typename W>
inline vector_t<W> repeat(W x) {
  return vector_t<W>(x);
}

template <typename V>
inline V add_products(const V& a, const V& b, const V& sum) {
  return at::vec::fmadd(a, b, sum);
}

#if MEGASWITCH_PAIRS
inline __m512bh load(const Pair* x) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(x)); }

inline __m512bh repeat(Pair x) { return reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(x.bits))); }

inline vector_t<Pair> add_products(__m512bh a, __m512bh b, vector_t<Pair> sum) { return _mm512_dpbf16_ps(sum, a, b); }
#endif

// Sums, stored as they are, added to what is there, or rounded.
template <typename V, typename W>
inline void put(const V& sum, W* to, bool add) {
  (add ? V::loadu(to) + sum : sum).store(to);
}

#if MEGASWITCH_PAIRS
inline void put(const vector_t<Pair>& sum, c10::BFloat16* to, bool) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(sum)));
}
#endif

template <typename E, int N, int R, typename C>
void tile(const Matrix<E>& a, const E* b, int64_t depth, C* c, int64_t width, bool add) {
  using V = vector_t<E>;
  V sum[R][N];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      sum[r][n] = V(0);
      if (add) __builtin_prefetch(c + r * width + n * V::size(), 1);
    }
  }
  for (int64_t d = 0; d < depth; ++d) {
    decltype(load(b)) right[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) right[n] = load(b + d * kPanel<E, N> + n * V::size());
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const auto x = repeat(a.data[r * a.row + d * a.step]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[r][n] = add_products(x, right[n], sum[r][n]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) put(sum[r][n], c + r * width + n * V::size(), add);
  }
}

// The tile of as many rows as there are, of R at most.
template <typename E, int N, int R, typename C>
void some_rows(int64_t rows, const Matrix<E>& a, const E* b, int64_t depth, C* c, int64_t width, bool add) {
  if (rows >= R) {
    tile<E, N, R>(a, b, depth, c, width, add);
  } else if constexpr (R > 1) {
    some_rows<E, N, R - 1>(rows, a, b, depth, c, width, add);
  }
}

// C = A B, or C += A B; `width` is the distance between C's rows, and `columns` are rounded up to panels.
template <typename E, int N = 2, typename C>
void multiply(int64_t rows, int64_t columns, int64_t depth, const Matrix<E>& a, const Packed<E, N>& b, C* c,
              int64_t width, bool add) {
  constexpr int R = kRows<E, N>;
  const int64_t steps = operands<E>(depth);
  for (int64_t n = 0; n < columns; n += kPanel<E, N>) {
    for (int64_t m = 0; m < rows; m += R) {
      some_rows<E, N, R>(rows - m, a.rows_from(m), b.panel(n), steps, c + m * width + n, width, add);
    }
  }
}

}  // namespace megaswitch
