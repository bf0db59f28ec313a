// GEGLU, gelu(g) x with gelu's approximation by tanh, and its gradients in place, in one pass each. With
// z = 2 sqrt(2 / pi) (g + 0.044715 g^3), gelu(g) = g / (1 + exp(-z)).
#include "common.h"
#include "exponential.h"

namespace megaswitch {
namespace {

using at::Tensor;

constexpr double kSlope = 1.5957691216057308;  // 2 sqrt(2 / pi)
constexpr double kCubic = 0.044715;

// 1 / (1 + exp(-z)): what gelu multiplies its argument by.
template <typename W>
inline W share_of(W g) {
  const W z = W(kSlope) * g * (W(1) + W(kCubic) * g * g);
  const W e = exponential<W>(z < W(0) ? z : -z);
  return (z < W(0) ? e : W(1)) / (W(1) + e);
}

template <typename T>
void forward_run(const T* gate, const T* x, T* out, int64_t n) {
  using W = wide_t<T>;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const W g = W(gate[i]);
    out[i] = narrow<T>(g * share_of<W>(g) * W(x[i]));
  }
}

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

Tensor geglu(const Tensor& gate_in, const Tensor& x_in) {
  check(gate_in, x_in);
  const Tensor gate = gate_in.contiguous(), x = x_in.contiguous();
  Tensor out = at::empty(x.sizes(), x.options());
  MEGASWITCH_DISPATCH(x.scalar_type(), "geglu", [&] {
    using T = scalar_t;
    const T *gp = gate.const_data_ptr<T>(), *xp = x.const_data_ptr<T>();
    T* op = out.data_ptr<T>();
    at::parallel_for(0, x.numel(), grain(1), [&](int64_t begin, int64_t end) {
      forward_run<T>(gp + begin, xp + begin, op + begin, end - begin);
    });
  });
  return out;
}

// The gradients of gate and x, in their places.
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
  m.impl("geglu", geglu);
  m.impl("geglu_gradient_", geglu_gradient_);
}

}  // namespace megaswitch
