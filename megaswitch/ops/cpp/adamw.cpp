// AdamW's update and the rounding of the weights that layers find, in one pass. N elements.
#include <cmath>

#include "common.h"

namespace megaswitch {
namespace {

using at::Tensor;

// Update number `count`, from 1, with its bias corrections.
template <typename W>
struct Step {
  W kept, rate, beta1, beta2, eps, root;
  Step(double lr, double beta1_in, double beta2_in, double eps_in, double weight_decay, int64_t count)
      : kept(static_cast<W>(1.0 - lr * weight_decay)),
        rate(static_cast<W>(lr / (1.0 - std::pow(beta1_in, static_cast<double>(count))))),
        beta1(static_cast<W>(1.0 - beta1_in)),
        beta2(static_cast<W>(1.0 - beta2_in)),
        eps(static_cast<W>(eps_in)),
        root(static_cast<W>(1.0 / std::sqrt(1.0 - std::pow(beta2_in, static_cast<double>(count))))) {}
};

// Of masters W with gradients G and moments M, widened while they are computed with; where R is not void, weights are
// rounded to it.
template <typename W, typename G, typename M, typename R>
void update(W* weight, const G* grad, M* first, M* second, R* rounded, const Step<W>& step, int64_t begin,
            int64_t end) {
#pragma omp simd
  for (int64_t n = begin; n < end; ++n) {
    const W g = W(grad[n]), m = W(first[n]), v = W(second[n]);
    const W mean = m + (g - m) * step.beta1, square = v + (g * g - v) * step.beta2;
    const W w = weight[n] * step.kept - step.rate * mean / (std::sqrt(square) * step.root + step.eps);
    weight[n] = w;
    first[n] = narrow<M>(wide_t<M>(mean));
    second[n] = narrow<M>(wide_t<M>(square));
    if constexpr (!std::is_void_v<R>) rounded[n] = narrow<R>(wide_t<R>(w));
  }
}

void check(const Tensor& x, int64_t size, const char* name) {
  TORCH_CHECK(x.is_contiguous() && x.numel() == size, name, ": ", size, " numbers side by side");
}

// Calls `work` with a number of the type: that of the masters, or bfloat16.
template <typename W, typename Work>
void with_type(const Tensor& x, Work work) {
  if (x.scalar_type() == at::kBFloat16) return work(c10::BFloat16());
  TORCH_CHECK(x.scalar_type() == c10::CppTypeToScalarType<W>::value, "of the weights' type or in bfloat16");
  work(W());
}

void adamw_(Tensor& weights, const Tensor& grad, Tensor& first, Tensor& second, const std::optional<Tensor>& rounded,
            double lr, double beta1, double beta2, double eps, double weight_decay, int64_t count) {
  const int64_t size = weights.numel();
  check(weights, size, "weights"), check(grad, size, "grad"), check(first, size, "first"), check(second, size, "second");
  TORCH_CHECK(first.scalar_type() == second.scalar_type(), "moments are of one type");
  if (rounded) {
    check(*rounded, size, "rounded");
    TORCH_CHECK(rounded->scalar_type() == at::kBFloat16, "weights are rounded to bfloat16");
  }
  AT_DISPATCH_FLOATING_TYPES(weights.scalar_type(), "adamw_", [&] {
    using W = scalar_t;
    const Step<W> step(lr, beta1, beta2, eps, weight_decay, count);
    with_type<W>(grad, [&](auto g) {
      with_type<W>(first, [&](auto m) {
        using G = decltype(g);
        using M = decltype(m);
        W* weight = weights.data_ptr<W>();
        M *mean = first.data_ptr<M>(), *square = second.data_ptr<M>();
        const G* by = grad.const_data_ptr<G>();
        at::parallel_for(0, size, grain(1), [&](int64_t begin, int64_t end) {
          if (rounded) {
            update(weight, by, mean, square, rounded->data_ptr<c10::BFloat16>(), step, begin, end);
          } else {
            update(weight, by, mean, square, static_cast<void*>(nullptr), step, begin, end);
          }
        });
      });
    });
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(megaswitch_cpp, CPU, m) { m.impl("adamw_", adamw_); }

}  // namespace megaswitch
