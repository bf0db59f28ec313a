// Products of matrices of any size, with 512 bits: in float32, or in bfloat16 where the processor multiplies pairs of
// numbers, summed in float32 and rounded once or not at all. Libraries compile a kernel for each shape, and experts bring
// new ones in every step; these have one.
//
// What is packed of one matrix stays in the second cache while the other one, or what comes out, passes.
#pragma once

#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>

#include "packing.h"
#include "product.h"

namespace megaswitch {

constexpr int kWide = 4;                 // vectors of a panel: what comes out lies in memory
constexpr int64_t kPacked = 1 << 17;     // operands that are packed at a time, of the matrix to the right
constexpr int64_t kGradientRows = 256;   // of a weight's gradient, at most at a time
constexpr int64_t kGradientSteps = 256;  // operands along its depth

template <typename E>
constexpr int64_t kWidth = kPanel<E, kWide>;

inline int64_t parts(int64_t all, int64_t size) { return (all + size - 1) / size; }

// Memory for what each thread packs.
template <typename E>
class Rooms {
 public:
  explicit Rooms(int64_t each)
      : each_(each), all_(at::empty({each * at::get_num_threads() * static_cast<int64_t>(sizeof(E))}, at::kByte)) {}
  E* mine() { return static_cast<E*>(all_.mutable_data_ptr()) + each_ * at::get_thread_num(); }

 private:
  int64_t each_;
  at::Tensor all_;
};

// A matrix's numbers, and the distances between its rows and between a row's numbers.
template <typename T>
struct Numbers {
  const T* data;
  int64_t row, step;
  explicit Numbers(const at::Tensor& x) : data(x.const_data_ptr<T>()), row(x.stride(0)), step(x.stride(1)) {}
};

// Rows of x as whole operands, and weights whose rows or columns are contiguous.
template <typename T>
std::pair<at::Tensor, at::Tensor> laid_out(const at::Tensor& x, const at::Tensor& weights) {
  if (x.size(-1) % kNumbers<operand_t<T>> != 0) {
    return {at::constant_pad_nd(x, {0, 1}), at::constant_pad_nd(weights, {0, 0, 0, 1})};
  }
  const bool either = weights.stride(-1) == 1 || weights.stride(-2) == 1;
  return {x.contiguous(), either ? weights : weights.contiguous()};
}

// Columns first .. first + count of a matrix as panels, its rows being the depth; either may be contiguous.
template <typename T, int N = kWide, typename E = operand_t<T>>
void pack_columns(const Numbers<T>& x, int64_t depth, int64_t first, int64_t count, E* out) {
  if (x.step == 1) {
    pack<E, N>(x.data + first, depth, count, x.row, out);
  } else {
    pack_transposed<E, N>(x.data + first * x.step, count, depth, x.step, out);
  }
}

// Columns of the last panel, which is not whole, by way of a tile that is; `write` gets row, column and sum.
template <typename E, int N, typename Write>
void multiply_edge(int64_t rows, int64_t columns, int64_t depth, const Matrix<E>& a, const Packed<E, N>& b,
                   Write write) {
  constexpr int64_t R = kRows<E, N>, W = kPanel<E, N>;
  alignas(64) sum_t<E> sums[R * W];
  for (int64_t m = 0; m < rows; m += R) {
    const int64_t some = std::min(R, rows - m);
    multiply<E, N>(some, W, depth, a.rows_from(m), b, sums, W, false);
    for (int64_t i = 0; i < some; ++i) {
      for (int64_t n = 0; n < columns; ++n) write(m + i, n, sums[i * W + n]);
    }
  }
}

// out[rows, width] = x[rows, depth] by the panels of `b`, of the rows of one tile: as far as the panels go, so that what
// comes out is written in long stretches.
template <typename E, int N, typename C>
void multiply_rows(int64_t rows, int64_t width, int64_t depth, const Matrix<E>& x, const Packed<E, N>& b, C* out,
                   int64_t out_row) {
  const int64_t whole = width / kPanel<E, N> * kPanel<E, N>;
  multiply<E, N>(rows, whole, depth, x, b, out, out_row, false);
  if (whole == width) return;
  const Packed<E, N> last{b.panel(whole), b.rows};
  multiply_edge(rows, width - whole, depth, x, last, [&](int64_t m, int64_t n, sum_t<E> sum) {
    out[m * out_row + whole + n] = narrow<C>(sum);
  });
}

// Panels that are packed at a time of each of S matrices of this depth, and the room for those of so many columns.
template <typename E, size_t S>
int64_t panels_of(int64_t depth) {
  return std::max<int64_t>(1, kPacked / S / kWidth<E> / std::max<int64_t>(1, operands<E>(depth)));
}

template <typename E, size_t S>
int64_t room_of(int64_t depth, int64_t width) {
  return S * std::min(panels_of<E, S>(depth), parts(width, kWidth<E>)) * kWidth<E> * operands<E>(depth);
}

template <size_t S>
using Tensors = std::array<at::Tensor, S>;

// out[N, M] = x[N, K] weight[K, M], rounded where out is narrower than float32, for each of some matrices that x is
// multiplied with at once. Rows of x are whole operands. finish(row, columns) gets the places in all of the outs, whose rows
// are as far apart, where columns of a row have just come out.
template <typename T, typename C, size_t S, typename Finish, typename E = operand_t<T>>
void multiply_matrices(const Tensors<S>& outs, const at::Tensor& x, const Tensors<S>& weights, Rooms<E>& rooms,
                       Finish finish) {
  if (outs[0].numel() == 0) return;
  const int64_t rows = x.size(0), depth = x.size(1), width = weights[0].size(1), steps = operands<E>(depth);
  const Matrix<E> left{static_cast<const E*>(x.const_data_ptr()), x.stride(0) / kNumbers<E>, 1};
  const int64_t to_row = outs[0].stride(0);
  std::array<C*, S> first;
  for (size_t s = 0; s < S; ++s) first[s] = outs[s].template mutable_data_ptr<C>();
  const int64_t threads = at::get_num_threads(), panels = parts(width, kWidth<E>);
  const int64_t across = std::max(parts(panels, panels_of<E, S>(depth)), std::min(panels, threads));
  const int64_t down = std::clamp<int64_t>(threads / across, 1, parts(rows, kWidth<E>));
  const int64_t columns = parts(panels, across) * kWidth<E>, band = parts(rows, down);
  at::parallel_for(0, across * down, 1, [&](int64_t begin, int64_t end) {
    E* packed = rooms.mine();
    for (int64_t block = begin; block < end; ++block) {
      const int64_t n = block % across * columns, some = std::min(columns, width - n);
      const int64_t last = std::min(rows, (block / across + 1) * band);
      if (some <= 0) continue;
      std::array<Packed<E, kWide>, S> right;
      for (size_t s = 0; s < S; ++s) {
        right[s] = {packed + s * columns * steps, steps};
        pack_columns(Numbers<T>(weights[s]), depth, n, some, packed + s * columns * steps);
      }
      for (int64_t m = block / across * band; m < last; m += kRows<E, kWide>) {
        const int64_t few = std::min<int64_t>(kRows<E, kWide>, last - m);
        std::array<C*, S> to;
        for (size_t s = 0; s < S; ++s) {
          to[s] = first[s] + m * to_row + n;
          multiply_rows(few, some, depth, left.rows_from(m), right[s], to[s], to_row);
        }
        for (int64_t i = 0; i < few; ++i) {
          finish(to, some);
          for (C*& row : to) row += to_row;
        }
      }
    }
  });
}

// A gradient and the matrices of which it is made: into[height, width] += rows[depth, height]^T cols[depth, width].
template <typename T>
struct Gradient {
  Numbers<T> rows, cols;
  int64_t depth;
  wide_t<T>* into;
  int64_t into_row, into_step;
};

// A panel's columns of some rows of a gradient.
template <typename T, typename E = operand_t<T>>
void add_panel(const Gradient<T>& g, int64_t height, int64_t columns, int64_t depth, const E* left,
               const Packed<E, kWide>& right, sum_t<E>* into) {
  constexpr int64_t W = kWidth<E>;
  for (int64_t i = 0; i < height; i += W, into += W * g.into_row) {
    const int64_t rows = std::min(W, height - i);
    const Matrix<E> across{left + i * right.rows, 1, W};
    if (columns == W && g.into_step == 1) {
      multiply<E, kWide>(rows, W, depth, across, right, into, g.into_row, true);
    } else {
      multiply_edge(rows, columns, depth, across, right, [&](int64_t m, int64_t n, sum_t<E> sum) {
        into[m * g.into_row + n * g.into_step] += sum;
      });
    }
  }
}

// Rows i .. i + height, so few that they stay in the cache, and columns o .. end of a gradient.
template <typename T, typename E = operand_t<T>>
void add_block(const Gradient<T>& g, int64_t i, int64_t height, int64_t o, int64_t end, E* left, E* right) {
  constexpr int64_t kDeep = kGradientSteps * kNumbers<E>;
  for (int64_t d = 0; d < g.depth; d += kDeep) {
    const int64_t depth = std::min(kDeep, g.depth - d);
    pack<E, kWide>(g.rows.data + d * g.rows.row + i, depth, height, g.rows.row, left);
    for (int64_t n = o; n < end; n += kWidth<E>) {
      const int64_t columns = std::min(kWidth<E>, end - n);
      pack<E, kWide>(g.cols.data + d * g.cols.row + n, depth, columns, g.cols.row, right);
      add_panel<T>(g, height, columns, depth, left, {right, operands<E>(depth)}, g.into + i * g.into_row + n * g.into_step);
    }
  }
}

// Rows of a gradient, and operands along its depth, that are packed at a time, and the room for them and a panel.
template <typename E>
int64_t gradient_rows(int64_t height) {
  return std::min(kGradientRows, parts(height, kWidth<E>) * kWidth<E>);
}

template <typename E>
int64_t gradient_steps(int64_t depth) {
  return std::min(kGradientSteps, operands<E>(depth));
}

template <typename E>
int64_t gradient_room(int64_t height, int64_t depth) {
  return (gradient_rows<E>(height) + kWidth<E>) * gradient_steps<E>(depth);
}

// into[I, O] += rows[N, I]^T cols[N, O]. Threads share the gradient's rows, and its columns where there are fewer panels
// of rows than threads. A gradient of few columns is computed transposed, so that panels are full.
template <typename T, typename E = operand_t<T>>
void add_matrices(const at::Tensor& into, const at::Tensor& rows, const at::Tensor& cols, Rooms<E>& rooms) {
  if (into.numel() == 0) return;
  if (into.size(1) < std::min(kWidth<E>, into.size(0))) return add_matrices<T>(into.t(), cols, rows, rooms);
  const int64_t height = into.size(0), width = into.size(1);
  const Gradient<T> g{Numbers<T>(rows), Numbers<T>(cols), rows.size(0), into.mutable_data_ptr<wide_t<T>>(),
                      into.stride(0),   into.stride(1)};
  const int64_t threads = at::get_num_threads(), high = parts(height, kWidth<E>), wide = parts(width, kWidth<E>);
  const int64_t down = std::min(high, parts(parts(height, kGradientRows), threads) * threads);
  const int64_t across = std::clamp<int64_t>(threads / down, 1, wide);
  const int64_t band = parts(high, down) * kWidth<E>, columns = parts(wide, across) * kWidth<E>;
  at::parallel_for(0, down * across, 1, [&](int64_t begin, int64_t end) {
    E* left = rooms.mine();
    E* right = left + gradient_rows<E>(height) * gradient_steps<E>(g.depth);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t i = block / across * band, o = block % across * columns;
      if (i < height) add_block<T>(g, i, std::min(band, height - i), o, std::min(width, o + columns), left, right);
    }
  });
}

}  // namespace megaswitch
