// The gradients of GEGLU in one pass, in the places of the products that they are of.
#include "geglu.h"

namespace megaswitch {
namespace {

using at::Tensor;

template <typename T>
void gradient_run(const T* grad, T* gate, T* x, int64_t n) {
  using W = wide_t<T>;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const W g = W(gate[i]), d = W(grad[i]), s = share_of<W>(g);
    const W slope = s + g * s * (W(1) - s) * W(kSlope) * (W(1) + W(3 * kCubic) * g * g);
    gate[i] = narrow<T>(d * W(x[i]) * slope);
    x[i] = narrow<T>(d * g * s);
  }
}

void check(const Tensor& a, const Tensor& b) {
  TORCH_CHECK(a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type(), "gate and x are of one shape and type");
}

void geglu_gradient_(Tensor& gate, Tensor& x, const Tensor& grad_in) {
  check(gate, x);
  check(grad_in, x);
  TORCH_CHECK(gate.is_contiguous() && x.is_contiguous(), "gate and x are contiguous");
  const Tensor grad = grad_in.contiguous();
  MEGASWITCH_DISPATCH(x.scalar_type(), "geglu_gradient_", [&] {
    using T = scalar_t;
    const T* dp = grad.const_data_ptr<T>();
    T *gp = gate.data_ptr<T>(), *xp = x.data_ptr<T>();
    at::parallel_for(0, x.numel(), grain(1), [&](int64_t begin, int64_t end) {
      gradient_run<T>(dp + begin, gp + begin, xp + begin, end - begin);
    });
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(megaswitch_cpp, CPU, m) {
  m.impl("geglu_gradient_", geglu_gradient_);
}

}  // namespace megaswitch
