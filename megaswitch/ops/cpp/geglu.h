// GEGLU, gelu(g) x with gelu's approximation by tanh. With z = 2 sqrt(2 / pi) (g + 0.044715 g^3),
// gelu(g) = g / (1 + exp(-z)).
#pragma once

#include "common.h"
#include "exponential.h"

namespace megaswitch {

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
void geglu_run(const T* gate, const T* x, T* out, int64_t n) {
  using W = wide_t<T>;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const W g = W(gate[i]);
    out[i] = narrow<T>(g * share_of<W>(g) * W(x[i]));
  }
}

}  // namespace megaswitch
