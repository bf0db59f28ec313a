// The two passes over logits that cross-entropy needs. N tokens, V columns of this part of the vocabulary.
#include <limits>

#include "common.h"
#include "exponential.h"

namespace megaswitch {
namespace {

using at::Tensor;

constexpr int64_t kBlock = 1024;  // columns that are read from memory once and from the nearest cache again

// Greatest and sum of exp(logit - greatest), which is corrected where a block has a greater one.
template <typename T>
void statistics_row(const T* logits, int64_t width, wide_t<T>* greatest, wide_t<T>* sum) {
  using W = wide_t<T>;
  W most = -std::numeric_limits<W>::infinity(), total = 0;
  for (int64_t first = 0; first < width; first += kBlock) {
    const int64_t last = std::min(width, first + kBlock);
    W here = most;
#pragma omp simd reduction(max : here)
    for (int64_t v = first; v < last; ++v) here = std::max(here, W(logits[v]));
    if (here > most) {
      total *= most > -std::numeric_limits<W>::infinity() ? exponential(most - here) : W(0);
      most = here;
    }
    W part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t v = first; v < last; ++v) part += exponential(W(logits[v]) - most);
    total += part;
  }
  *greatest = most;
  *sum = total;
}

// `into` may be the logits themselves.
template <typename T, typename D>
void gradient_row(const T* logits, int64_t width, wide_t<T> log_z, wide_t<T> factor, D* into) {
  using W = wide_t<T>;
#pragma omp simd
  for (int64_t v = 0; v < width; ++v) into[v] = narrow<D>(exponential(W(logits[v]) - log_z) * factor);
}

// greatest, sum of exp(logit - greatest), logit at the target (0 where it is no column of these)
std::tuple<Tensor, Tensor, Tensor> statistics(const Tensor& logits_in, const Tensor& target_in) {
  const Tensor logits = logits_in.contiguous(), target = target_in.contiguous();
  const int64_t rows = logits.size(0), width = logits.size(1);
  TORCH_CHECK(target.scalar_type() == at::kLong && target.numel() == rows, "target: one int64 number a row");
  Tensor greatest, sum, at_target;
  MEGASWITCH_DISPATCH(logits.scalar_type(), "cross_entropy_statistics", [&] {
    using T = scalar_t;
    using W = wide_t<T>;
    const auto options = logits.options().dtype(wide_type<T>());
    greatest = at::empty({rows}, options), sum = at::empty({rows}, options), at_target = at::empty({rows}, options);
    const T* lp = logits.const_data_ptr<T>();
    const int64_t* tp = target.const_data_ptr<int64_t>();
    W *gp = greatest.data_ptr<W>(), *sp = sum.data_ptr<W>(), *ap = at_target.data_ptr<W>();
    at::parallel_for(0, rows, grain(width), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        statistics_row<T>(lp + n * width, width, gp + n, sp + n);
        ap[n] = tp[n] >= 0 && tp[n] < width ? W(lp[n * width + tp[n]]) : W(0);
      }
    });
  });
  return {greatest, sum, at_target};
}

template <typename T, typename D>
void gradient_rows(const Tensor& logits, const Tensor& target, const Tensor& log_z, const Tensor& grad, double z_loss,
                   Tensor& into) {
  using W = wide_t<T>;
  const int64_t rows = logits.size(0), width = logits.size(1);
  const T* lp = logits.const_data_ptr<T>();
  D* ip = into.data_ptr<D>();
  const int64_t* tp = target.const_data_ptr<int64_t>();
  const W *zp = log_z.const_data_ptr<W>(), *gp = grad.const_data_ptr<W>();
  at::parallel_for(0, rows, grain(width), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const T* row = lp + n * width;
      const bool held = tp[n] >= 0 && tp[n] < width;
      const W factor = gp[n] * (W(1) + W(2 * z_loss) * zp[n]);
      const W there = held ? exponential(W(row[tp[n]]) - zp[n]) * factor - gp[n] : W(0);
      gradient_row<T, D>(row, width, zp[n], factor, ip + n * width);
      if (held) ip[n * width + tp[n]] = narrow<D>(there);
    }
  });
}

// grad x ((1 + 2 z_loss log Z) exp(logit - log Z) - [target]), of the logits' type or of bfloat16
void gradient(const Tensor& logits, const Tensor& target_in, const Tensor& log_z_in, const Tensor& grad_in,
              double z_loss, Tensor& into) {
  TORCH_CHECK(logits.is_contiguous() && into.is_contiguous() && into.sizes() == logits.sizes(),
              "logits and gradient are contiguous and of one shape");
  const int64_t rows = logits.size(0);
  const Tensor target = target_in.contiguous();
  TORCH_CHECK(target.scalar_type() == at::kLong && target.numel() == rows, "target: one int64 number a row");
  MEGASWITCH_DISPATCH(logits.scalar_type(), "cross_entropy_gradient", [&] {
    using T = scalar_t;
    const Tensor log_z = log_z_in.to(wide_type<T>()).contiguous(), grad = grad_in.to(wide_type<T>()).contiguous();
    TORCH_CHECK(log_z.numel() == rows && grad.numel() == rows, "log_z and grad: one number a row");
    if (into.scalar_type() == logits.scalar_type()) {
      gradient_rows<T, T>(logits, target, log_z, grad, z_loss, into);
    } else {
      TORCH_CHECK(into.scalar_type() == at::kBFloat16, "the gradient is of the logits' type or of bfloat16");
      gradient_rows<T, at::BFloat16>(logits, target, log_z, grad, z_loss, into);
    }
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(megaswitch_cpp, CPU, m) {
  m.impl("cross_entropy_statistics", statistics);
  m.impl("cross_entropy_gradient", gradient);
}

}  // namespace megaswitch
