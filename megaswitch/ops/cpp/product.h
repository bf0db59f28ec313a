// Products of small matrices on one thread, C[rows, columns] (+)= A[rows, depth] B[depth, columns].
//
// A may lie in memory either way round. B is packed: panels of kPanel columns side by side, row after row, zeros where
// the last panel is wider than B. C's rows have room for whole panels. A tile of C, kRows x kPanel, stays in registers
// (24 of 32 with 512 bits, 12 of 16 with 256) while the depth passes: each row of it takes one load of A and none of C.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cstdint>

#include "common.h"

namespace megaswitch {

template <typename W>
using vector_t = at::vec::Vectorized<W>;

template <typename W>
constexpr int64_t kPanel = 2 * vector_t<W>::size();

template <typename W>
constexpr int kRows = vector_t<W>::size() * sizeof(W) == 64 ? 12 : 6;

// Columns rounded up to whole panels.
template <typename W>
inline int64_t padded(int64_t columns) {
  return (columns + kPanel<W> - 1) / kPanel<W> * kPanel<W>;
}

// A matrix in memory: the distances between its rows and between the numbers of a row.
template <typename W>
struct Matrix {
  const W* data;
  int64_t row, step;
};

// Panels in memory, each a number of rows that may be more than the depth that is used.
template <typename W>
struct Packed {
  const W* data;
  int64_t rows;
  Packed from(int64_t row) const { return {data + row * kPanel<W>, rows}; }
  const W* panel(int64_t column) const { return data + column * rows; }
};

template <typename W, int R>
void tile(const Matrix<W>& a, const W* b, int64_t depth, W* c, int64_t width, bool add) {
  using V = vector_t<W>;
  V sum[R][2];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    sum[r][0] = add ? V::loadu(c + r * width) : V(W(0));
    sum[r][1] = add ? V::loadu(c + r * width + V::size()) : V(W(0));
  }
  for (int64_t d = 0; d < depth; ++d) {
    const V left = V::loadu(b + d * kPanel<W>), right = V::loadu(b + d * kPanel<W> + V::size());
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const V x(a.data[r * a.row + d * a.step]);
      sum[r][0] = at::vec::fmadd(x, left, sum[r][0]);
      sum[r][1] = at::vec::fmadd(x, right, sum[r][1]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    sum[r][0].store(c + r * width);
    sum[r][1].store(c + r * width + V::size());
  }
}

// The tile of as many rows as there are, of R at most.
template <typename W, int R = kRows<W>>
void some_rows(int64_t rows, const Matrix<W>& a, const W* b, int64_t depth, W* c, int64_t width, bool add) {
  if (rows >= R) {
    tile<W, R>(a, b, depth, c, width, add);
  } else if constexpr (R > 1) {
    some_rows<W, R - 1>(rows, a, b, depth, c, width, add);
  }
}

// C = A B, or C += A B; `width` is the distance between C's rows, and `columns` are rounded up to panels.
template <typename W>
void multiply(int64_t rows, int64_t columns, int64_t depth, const Matrix<W>& a, const Packed<W>& b, W* c, int64_t width,
              bool add) {
  for (int64_t n = 0; n < columns; n += kPanel<W>) {
    for (int64_t m = 0; m < rows; m += kRows<W>) {
      const Matrix<W> part{a.data + m * a.row, a.row, a.step};
      some_rows<W>(rows - m, part, b.panel(n), depth, c + m * width + n, width, add);
    }
  }
}

// Rows as they are, `width` apart.
template <typename T, typename W = wide_t<T>>
void copy_rows(const T* x, int64_t rows, int64_t columns, int64_t row, W* out, int64_t width) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t d = 0; d < columns; ++d) out[i * width + d] = W(x[i * row + d]);
  }
}

// Panels of a matrix whose rows, `row` numbers apart, are the depth.
template <typename T, typename W = wide_t<T>>
void pack(const T* x, int64_t rows, int64_t columns, int64_t row, W* out) {
  for (int64_t n = 0; n < columns; n += kPanel<W>) {
    const int64_t count = std::min(kPanel<W>, columns - n);
    for (int64_t d = 0; d < rows; ++d, out += kPanel<W>) {
      for (int64_t i = 0; i < count; ++i) out[i] = W(x[d * row + n + i]);
      for (int64_t i = count; i < kPanel<W>; ++i) out[i] = W(0);
    }
  }
}

// Panels of the transposed matrix: its rows are the columns, and `depth` numbers of each.
template <typename T, typename W = wide_t<T>>
void pack_transposed(const T* x, int64_t rows, int64_t depth, int64_t row, W* out) {
  for (int64_t n = 0; n < rows; n += kPanel<W>, out += depth * kPanel<W>) {
    const int64_t count = std::min(kPanel<W>, rows - n);
    for (int64_t d = 0; d < depth; ++d) {
      for (int64_t i = 0; i < count; ++i) out[d * kPanel<W> + i] = W(x[(n + i) * row + d]);
      for (int64_t i = count; i < kPanel<W>; ++i) out[d * kPanel<W> + i] = W(0);
    }
  }
}

}  // namespace megaswitch
