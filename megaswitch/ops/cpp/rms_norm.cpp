// Root-mean-square normalisation, with the residual stream's addition where there is one.
// N rows of D numbers.
#include <vector>

#include "common.h"

namespace megaswitch {
namespace {

using at::Tensor;

constexpr int64_t kBlock = 64;  // rows whose parts of the weight's gradient are summed by one thread

template <typename T>
void forward_row(const T* x, const T* y, const T* w, T* total, T* normed, wide_t<T>* rstd, int64_t width, double eps) {
  using W = wide_t<T>;
  if (y) {
#pragma omp simd
    for (int64_t d = 0; d < width; ++d) total[d] = narrow<T>(W(x[d]) + W(y[d]));
    x = total;
  }
  W squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t d = 0; d < width; ++d) squares += W(x[d]) * W(x[d]);
  const W r = W(1) / std::sqrt(squares / W(width) + W(eps));
#pragma omp simd
  for (int64_t d = 0; d < width; ++d) {
    normed[d] = narrow<T>(W(narrow<T>(W(x[d]) * r)) * W(w[d]));
  }
  *rstd = r;
}

template <typename T>
void backward_row(const T* grad, const T* more, const T* x, const T* w, wide_t<T> r, T* dx, wide_t<T>* dw,
                  int64_t width) {
  using W = wide_t<T>;
  W dot = 0;
#pragma omp simd reduction(+ : dot)
  for (int64_t d = 0; d < width; ++d) {
    const W normed = W(x[d]) * r;
    dot += W(grad[d]) * W(w[d]) * normed;
    dw[d] += W(grad[d]) * W(narrow<T>(normed));
  }
  const W slope = r * r * dot / W(width);
  if (more) {
#pragma omp simd
    for (int64_t d = 0; d < width; ++d) {
      dx[d] = narrow<T>(W(more[d]) + r * W(grad[d]) * W(w[d]) - W(x[d]) * slope);
    }
  } else {
#pragma omp simd
    for (int64_t d = 0; d < width; ++d) {
      dx[d] = narrow<T>(r * W(grad[d]) * W(w[d]) - W(x[d]) * slope);
    }
  }
}

// total = x + y (where y is given), normed = T(total * rstd) * w, rstd = 1 / sqrt(mean(total^2) + eps)
std::tuple<Tensor, Tensor, Tensor> add_rms_norm_forward(
    const Tensor& x_in, const std::optional<Tensor>& y_in, const Tensor& w_in, double eps) {
  const Tensor x = x_in.contiguous(), w = w_in.to(x.scalar_type()).contiguous();
  const Tensor y = y_in ? y_in->contiguous() : Tensor();
  const int64_t width = x.size(-1), rows = width ? x.numel() / width : 0;
  Tensor total = y_in ? at::empty(x.sizes(), x.options()) : at::empty({0}, x.options());
  Tensor normed = at::empty(x.sizes(), x.options()), rstd;
  MEGASWITCH_DISPATCH(x.scalar_type(), "add_rms_norm_forward", [&] {
    using T = scalar_t;
    rstd = at::empty({rows}, x.options().dtype(wide_type<T>()));
    const T *xp = x.const_data_ptr<T>(), *yp = y_in ? y.const_data_ptr<T>() : nullptr, *wp = w.const_data_ptr<T>();
    T *tp = y_in ? total.data_ptr<T>() : nullptr, *np = normed.data_ptr<T>();
    wide_t<T>* rp = rstd.data_ptr<wide_t<T>>();
    at::parallel_for(0, rows, grain(width), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const int64_t at = n * width;
        forward_row(xp + at, yp ? yp + at : nullptr, wp, tp ? tp + at : nullptr, np + at, rp + n, width, eps);
      }
    });
  });
  return {total, normed, rstd};
}

// Gradients of the stream (grad_total added where given) and of w, whose sum over rows has the same order whatever
// the number of threads: by blocks of rows, then block by block.
std::tuple<Tensor, Tensor> rms_norm_backward(
    const Tensor& grad_in, const std::optional<Tensor>& more_in, const Tensor& x_in, const Tensor& w_in,
    const Tensor& rstd) {
  const Tensor grad = grad_in.contiguous(), x = x_in.contiguous(), w = w_in.to(x.scalar_type()).contiguous();
  const Tensor more = more_in ? more_in->contiguous() : Tensor();
  const int64_t width = x.size(-1), rows = width ? x.numel() / width : 0, blocks = (rows + kBlock - 1) / kBlock;
  Tensor dx = at::empty(x.sizes(), x.options()), dw;
  MEGASWITCH_DISPATCH(x.scalar_type(), "rms_norm_backward", [&] {
    using T = scalar_t;
    using W = wide_t<T>;
    dw = at::zeros({width}, x.options().dtype(wide_type<T>()));
    std::vector<W> parts(blocks * width, W(0));
    const T *gp = grad.const_data_ptr<T>(), *xp = x.const_data_ptr<T>(), *wp = w.const_data_ptr<T>();
    const T* mp = more_in ? more.const_data_ptr<T>() : nullptr;
    const W* rp = rstd.const_data_ptr<W>();
    T* op = dx.data_ptr<T>();
    at::parallel_for(0, blocks, std::max<int64_t>(1, grain(width) / kBlock), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin * kBlock; n < std::min(rows, end * kBlock); ++n) {
        const int64_t at = n * width;
        W* part = parts.data() + n / kBlock * width;
        backward_row(gp + at, mp ? mp + at : nullptr, xp + at, wp, rp[n], op + at, part, width);
      }
    });
    W* sum = dw.data_ptr<W>();
    for (int64_t b = 0; b < blocks; ++b) {
      for (int64_t d = 0; d < width; ++d) sum[d] += parts[b * width + d];
    }
  });
  return {dx, dw};
}

}  // namespace

TORCH_LIBRARY_IMPL(megaswitch_cpp, CPU, m) {
  m.impl("add_rms_norm_forward", add_rms_norm_forward);
  m.impl("rms_norm_backward", rms_norm_backward);
}

}  // namespace megaswitch
