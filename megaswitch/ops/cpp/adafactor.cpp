// Adafactor's passes over a stack of matrices: sums of squared gradients by row and column, sums of squares of update
// and weight, the update itself; and all of them for matrices that no rank shares, one after the other, so that a matrix
// that fits into the cache comes from memory once.
// B matrices of R rows and C columns. Sums are by blocks of rows, then block by block: their order does not depend on
// the number of threads.
#include <algorithm>
#include <cmath>
#include <vector>

#include "common.h"

namespace megaswitch {
namespace {

using at::Tensor;

constexpr int64_t kRows = 64;    // of a block
constexpr int64_t kLine = 16;    // numbers of a cache line
constexpr int64_t kTile = 1 << 16;  // columns whose sums stay in a near cache
constexpr int64_t kSmall = 1 << 18;  // elements of a matrix that one thread takes alone

// One matrix of a stack: rows of C numbers, so many numbers apart.
template <typename T>
struct Matrix {
  T* data;
  int64_t stride, rows, cols;
  T* row(int64_t r) const { return data + r * stride; }
};

template <typename T>
struct Stack {
  T* data;
  int64_t batch_stride, row_stride, batch, rows, cols;
  explicit Stack(const Tensor& x)
      : data(const_cast<T*>(x.const_data_ptr<std::remove_const_t<T>>())),
        batch_stride(x.stride(0)),
        row_stride(x.stride(1)),
        batch(x.size(0)),
        rows(x.size(1)),
        cols(x.size(2)) {
    TORCH_CHECK(cols <= 1 || x.stride(2) == 1, "the columns of a matrix lie side by side");
  }
  Matrix<T> operator[](int64_t b) const { return {data + b * batch_stride, row_stride, rows, cols}; }
};

// Numbers of each matrix: rows' or columns', side by side.
template <typename T>
struct Lines {
  T* data;
  int64_t stride;
  explicit Lines(const Tensor& x)
      : data(const_cast<T*>(x.const_data_ptr<std::remove_const_t<T>>())), stride(x.stride(0)) {
    TORCH_CHECK(x.size(1) <= 1 || x.stride(1) == 1, "a matrix's means lie side by side");
  }
  T* operator[](int64_t b) const { return data + b * stride; }
};

int64_t blocks_of(int64_t rows) { return (rows + kRows - 1) / kRows; }

template <typename F>
void for_blocks(int64_t rows, int64_t cols, const F& f) {
  at::parallel_for(0, blocks_of(rows), std::max<int64_t>(1, grain(cols) / kRows), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) f(k, k * kRows, std::min(rows, (k + 1) * kRows));
  });
}

// Small matrices a thread each, large ones by all threads.
template <typename T, typename F>
void for_matrices(const Stack<T>& stack, const F& f) {
  const int64_t size = stack.rows * stack.cols;
  if (size > kSmall) {
    for (int64_t b = 0; b < stack.batch; ++b) f(b);
    return;
  }
  at::parallel_for(0, stack.batch, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, size)), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) f(b);
  });
}

template <typename G, typename W>
W row_squares(const G* g, W* col, int64_t n, W eps) {
  W sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < n; ++c) {
    const W square = W(g[c]) * W(g[c]) + eps;
    sum += square;
    col[c] += square;
  }
  return sum;
}

// Sums of squares (plus eps each) of one matrix, by row and by column.
template <typename G, typename W>
void sum_squares(const Matrix<const G>& grad, W* row, W* col, W eps) {
  const int64_t rows = grad.rows, cols = grad.cols, blocks = blocks_of(rows);
  const int64_t width = (cols + kLine - 1) / kLine * kLine;
  std::vector<W> storage(blocks * width + kLine, W(0));
  W* parts = storage.data();  // from where a cache line begins: numbers that lie in two are slow to come back
  while (reinterpret_cast<uintptr_t>(parts) % (kLine * sizeof(float)) != 0) ++parts;
  for_blocks(rows, cols, [&](int64_t k, int64_t begin, int64_t end) {
    std::fill(row + begin, row + end, W(0));
    for (int64_t c = 0; c < cols; c += kTile) {
      W* part = parts + k * width + c;
      for (int64_t r = begin; r < end; ++r) row[r] += row_squares(grad.row(r) + c, part, std::min(kTile, cols - c), eps);
    }
  });
  std::fill(col, col + cols, W(0));
  for (int64_t k = 0; k < blocks; ++k) {
    const W* part = parts + k * width;
#pragma omp simd
    for (int64_t c = 0; c < cols; ++c) col[c] += part[c];
  }
}

struct Squares {
  double update = 0, weight = 0;
};

Squares sum_of(const std::vector<Squares>& parts) {
  Squares sum;
  for (const Squares& part : parts) {
    sum.update += part.update;
    sum.weight += part.weight;
  }
  return sum;
}

// Adds to a unit's sums of squares, one of [2, U].
template <typename W>
void add_to(const Tensor& sums, int64_t unit, const Squares& squares) {
  W* out = sums.data_ptr<W>() + unit * sums.stride(1);
  out[0] += W(squares.update);
  out[sums.stride(0)] += W(squares.weight);
}

// Squares of updates and weights of a row's stretch.
template <typename G, typename W>
void add_row_both(const G* g, const W* p, const W* col, W row, int64_t n, Squares& sum) {
  W u2 = 0, p2 = 0;
#pragma omp simd reduction(+ : u2, p2)
  for (int64_t c = 0; c < n; ++c) {
    const W u = W(g[c]) * row * col[c];
    u2 += u * u;
    p2 += p[c] * p[c];
  }
  sum.update += u2;
  sum.weight += p2;
}

template <typename G, typename W>
Squares both_squares(const Matrix<const G>& grad, const Matrix<const W>& p, const W* row, const W* col) {
  std::vector<Squares> parts(blocks_of(grad.rows));
  for_blocks(grad.rows, grad.cols, [&](int64_t k, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t c = 0; c < grad.cols; c += kTile) {
        const int64_t n = std::min(kTile, grad.cols - c);
        add_row_both(grad.row(r) + c, p.row(r) + c, col + c, row[r], n, parts[k]);
      }
    }
  });
  return sum_of(parts);
}

template <typename G, typename W>
void apply_row(W* p, const G* g, const W* col, W row, W scale, int64_t n) {
#pragma omp simd
  for (int64_t c = 0; c < n; ++c) p[c] += W(g[c]) * row * col[c] * scale;
}

template <typename G, typename W>
void apply(const Matrix<W>& p, const Matrix<const G>& grad, const W* row, const W* col, W scale) {
  for_blocks(grad.rows, grad.cols, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) apply_row(p.row(r), grad.row(r), col, row[r], scale, grad.cols);
  });
}

// From one number so far towards another, as torch's lerp.
template <typename W>
W towards(W from, W to, W weight) {
  const W step = to - from;
  return weight < W(0.5) ? from + weight * step : to - step * (W(1) - weight);
}

template <typename W>
void lerp(W* running, const W* fresh, W scale, W weight, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) running[i] = towards(running[i], fresh[i] * scale, weight);
}

template <typename W>
void inverse_roots(W* out, const W* x, W scale, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = W(1) / std::sqrt(x[i] * scale);
}

struct Settings {
  double decay, lr, clip, eps, least;
  bool scaled;
};

double step_size(const Squares& squares, double size, const Settings& s) {
  const double step = -s.lr / std::max(1.0, std::sqrt(squares.update / size) / s.clip);
  return s.scaled ? step * std::max(std::sqrt(squares.weight / size), s.least) : step;
}

// The whole update of a matrix that lies here whole.
template <typename G, typename W>
void update_matrix(const Matrix<W>& p, const Matrix<const G>& grad, W* rows, W* cols, const Settings& s) {
  const int64_t R = grad.rows, C = grad.cols;
  std::vector<W> row(R), col(C);
  sum_squares(grad, row.data(), col.data(), W(s.eps));
  lerp(rows, row.data(), W(1) / W(C), W(1 - s.decay), R);
  lerp(cols, col.data(), W(1) / W(R), W(1 - s.decay), C);
  double mean = 0;
  for (int64_t r = 0; r < R; ++r) mean += rows[r];
  inverse_roots(row.data(), rows, W(R / mean), R);
  inverse_roots(col.data(), cols, W(1), C);
  const Squares squares = both_squares(grad, Matrix<const W>{p.data, p.stride, R, C}, row.data(), col.data());
  apply(p, grad, row.data(), col.data(), W(step_size(squares, double(R) * double(C), s)));
}

// f(grad's type, weights' type): gradients are as wide as the weights, or bfloat16.
template <typename F>
void with_types(const Tensor& grad, const Tensor& weights, const F& f) {
  const bool narrow = grad.scalar_type() == at::kBFloat16;
  TORCH_CHECK(narrow || grad.scalar_type() == weights.scalar_type(), "gradients are as wide as weights, or bfloat16");
  if (weights.scalar_type() == at::kDouble) {
    narrow ? f(at::BFloat16(), double()) : f(double(), double());
  } else {
    TORCH_CHECK(weights.scalar_type() == at::kFloat, "weights are float32 or float64");
    narrow ? f(at::BFloat16(), float()) : f(float(), float());
  }
}

void adafactor_mean_squares_(
    const Tensor& rows, const Tensor& cols, const Tensor& grad, double row_length, double col_length, double eps) {
  with_types(grad, rows, [&](auto g, auto w) {
    using G = decltype(g);
    using W = decltype(w);
    const Stack<const G> grads(grad);
    const Lines<W> rp(rows), cp(cols);
    for_matrices(grads, [&](int64_t b) {
      std::vector<W> row(grads.rows), col(grads.cols);
      sum_squares(grads[b], row.data(), col.data(), W(eps));
      for (int64_t r = 0; r < grads.rows; ++r) rp[b][r] += row[r] / W(row_length);
      for (int64_t c = 0; c < grads.cols; ++c) cp[b][c] += col[c] / W(col_length);
    });
  });
}

void adafactor_squares_(
    const Tensor& sums, const Tensor& weights, const Tensor& grad, const Tensor& rows, const Tensor& cols) {
  with_types(grad, weights, [&](auto g, auto w) {
    using G = decltype(g);
    using W = decltype(w);
    const Stack<const G> grads(grad);
    const Stack<const W> p(weights);
    const Lines<const W> row(rows), col(cols);
    std::vector<Squares> found(grads.batch);
    for_matrices(grads, [&](int64_t b) { found[b] = both_squares(grads[b], p[b], row[b], col[b]); });
    for (int64_t b = 0; b < grads.batch; ++b) add_to<W>(sums, sums.size(1) == 1 ? 0 : b, found[b]);
  });
}

void adafactor_apply_(
    const Tensor& weights, const Tensor& grad, const Tensor& rows, const Tensor& cols, const Tensor& scale) {
  with_types(grad, weights, [&](auto g, auto w) {
    using G = decltype(g);
    using W = decltype(w);
    const Stack<const G> grads(grad);
    const Stack<W> p(weights);
    const Lines<const W> row(rows), col(cols);
    const W* scales = scale.const_data_ptr<W>();
    for_matrices(grads, [&](int64_t b) {
      apply(p[b], grads[b], row[b], col[b], scales[scale.size(0) == 1 ? 0 : b * scale.stride(0)]);
    });
  });
}

void adafactor_update_(const Tensor& weights, const Tensor& rows, const Tensor& cols, const Tensor& grad, double decay,
                       double lr, double clip, bool scaled, double eps, double least) {
  const Settings settings{decay, lr, clip, eps, least, scaled};
  with_types(grad, weights, [&](auto g, auto w) {
    using G = decltype(g);
    using W = decltype(w);
    const Stack<const G> grads(grad);
    const Stack<W> p(weights);
    const Lines<W> rp(rows), cp(cols);
    for_matrices(grads, [&](int64_t b) { update_matrix(p[b], grads[b], rp[b], cp[b], settings); });
  });
}

constexpr int64_t kRun = 1 << 14;  // elements of an unfactored tensor that are summed together

// The tensor's second moments move towards the squares; sums of squares of update and weight.
template <typename G, typename W>
Squares moments_run(W* second, const W* p, const G* g, W weight, W eps, int64_t n) {
  W u2 = 0, p2 = 0;
#pragma omp simd reduction(+ : u2, p2)
  for (int64_t i = 0; i < n; ++i) {
    const W moved = towards(second[i], W(g[i]) * W(g[i]) + eps, weight);
    const W u = W(g[i]) / std::sqrt(moved);
    second[i] = moved;
    u2 += u * u;
    p2 += p[i] * p[i];
  }
  return {double(u2), double(p2)};
}

template <typename G, typename W>
void apply_moments_run(W* p, const W* second, const G* g, W scale, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) p[i] += W(g[i]) / std::sqrt(second[i]) * scale;
}

template <typename F>
void for_runs(int64_t size, const F& f) {
  at::parallel_for(0, (size + kRun - 1) / kRun, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) f(k, k * kRun, std::min(kRun, size - k * kRun));
  });
}

void adafactor_moments_(const Tensor& second, const Tensor& sums, const Tensor& weights, const Tensor& grad,
                        double decay, double eps) {
  with_types(grad, weights, [&](auto g, auto w) {
    using G = decltype(g);
    using W = decltype(w);
    const int64_t size = grad.numel();
    std::vector<Squares> parts((size + kRun - 1) / kRun);
    W* s = second.data_ptr<W>();
    const W* p = weights.const_data_ptr<W>();
    const G* gp = grad.const_data_ptr<G>();
    for_runs(size, [&](int64_t k, int64_t at, int64_t n) {
      parts[k] = moments_run(s + at, p + at, gp + at, W(1 - decay), W(eps), n);
    });
    add_to<W>(sums, 0, sum_of(parts));
  });
}

void adafactor_apply_moments_(const Tensor& weights, const Tensor& grad, const Tensor& second, const Tensor& scale) {
  with_types(grad, weights, [&](auto g, auto w) {
    using G = decltype(g);
    using W = decltype(w);
    W* p = weights.data_ptr<W>();
    const G* gp = grad.const_data_ptr<G>();
    const W *s = second.const_data_ptr<W>(), by = *scale.const_data_ptr<W>();
    for_runs(grad.numel(), [&](int64_t, int64_t at, int64_t n) { apply_moments_run(p + at, s + at, gp + at, by, n); });
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(megaswitch_cpp, CPU, m) {
  m.impl("adafactor_mean_squares_", adafactor_mean_squares_);
  m.impl("adafactor_squares_", adafactor_squares_);
  m.impl("adafactor_apply_", adafactor_apply_);
  m.impl("adafactor_update_", adafactor_update_);
  m.impl("adafactor_moments_", adafactor_moments_);
  m.impl("adafactor_apply_moments_", adafactor_apply_moments_);
}

}  // namespace megaswitch
