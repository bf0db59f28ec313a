// Dropout and jitter by the stateless generator. N rows of F features.
#include "common.h"
#include "jitter.h"
#include "random.h"

namespace megaswitch {
namespace {

using at::Tensor;

template <typename T>
void drop_row(const T* x, uint32_t state, Counters counters, uint32_t threshold, wide_t<T> scale, T* out,
              int64_t width) {
  using W = wide_t<T>;
#pragma omp simd
  for (int64_t f = 0; f < width; ++f) {
    const bool kept = (counters.of(state, static_cast<uint32_t>(f)) >> 8) >= threshold;
    out[f] = narrow<T>(W(x[f]) * (kept ? scale : W(0)));  // a product, so that NaN stays
  }
}

void uniform_row(uint32_t state, Counters counters, float* out, int64_t width) {
#pragma omp simd
  for (int64_t f = 0; f < width; ++f) {
    const int32_t bits = static_cast<int32_t>(counters.of(state, static_cast<uint32_t>(f)) >> 8);
    out[f] = static_cast<float>(bits) * 0x1p-24f;
  }
}

void check(const Tensor& states, int64_t rows, int64_t first, int64_t width) {
  TORCH_CHECK(states.scalar_type() == at::kLong && states.numel() == rows, "states: one int64 number a row");
  TORCH_CHECK(first >> 32 == (first + std::max<int64_t>(width, 1) - 1) >> 32, "features cross a multiple of 2^32");
}

// Calls row(n, state) for each row's number and state, of rows of that width.
template <typename Row>
void for_each_row(const Tensor& states, int64_t width, Row row) {
  const int64_t* state = states.const_data_ptr<int64_t>();
  at::parallel_for(0, states.numel(), grain(width), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) row(n, static_cast<uint32_t>(state[n]));
  });
}

// x where the row's and feature's number is at least the rate, times 1 / (1 - rate), and zero elsewhere
Tensor dropout(const Tensor& x_in, const Tensor& states_in, double rate, int64_t first) {
  const Tensor x = x_in.contiguous(), states = states_in.contiguous();
  const int64_t width = x.size(1);
  check(states, x.size(0), first, width);
  Tensor out = at::empty(x.sizes(), x.options());
  MEGASWITCH_DISPATCH(x.scalar_type(), "dropout", [&] {
    const auto scale = static_cast<wide_t<scalar_t>>(1.0 / (1.0 - rate));
    const uint32_t threshold = threshold_of(rate);
    const scalar_t* from = x.const_data_ptr<scalar_t>();
    scalar_t* to = out.data_ptr<scalar_t>();
    for_each_row(states, width, [&](int64_t n, uint32_t state) {
      drop_row<scalar_t>(from + n * width, state, Counters(first), threshold, scale, to + n * width, width);
    });
  });
  return out;
}

// x times a number near 1 by row and feature
Tensor jitter(const Tensor& x_in, const Tensor& states_in, double size) {
  const Tensor x = x_in.contiguous(), states = states_in.contiguous();
  const int64_t width = x.size(1);
  check(states, x.size(0), 0, width);
  Tensor out = at::empty(x.sizes(), x.options());
  MEGASWITCH_DISPATCH(x.scalar_type(), "jitter", [&] {
    const scalar_t* from = x.const_data_ptr<scalar_t>();
    scalar_t* to = out.data_ptr<scalar_t>();
    for_each_row(states, width, [&](int64_t n, uint32_t state) {
      jitter_row<scalar_t>(from + n * width, state, size, to + n * width, width);
    });
  });
  return out;
}

// numbers in [0, 1) of all features of each row
Tensor features_uniform(const Tensor& states_in, int64_t first, int64_t width) {
  const Tensor states = states_in.contiguous();
  check(states, states.size(0), first, width);
  Tensor out = at::empty({states.size(0), width}, states.options().dtype(at::kFloat));
  float* to = out.data_ptr<float>();
  for_each_row(states, width, [&](int64_t n, uint32_t state) {
    uniform_row(state, Counters(first), to + n * width, width);
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(megaswitch_cpp, CPU, m) {
  m.impl("dropout", dropout);
  m.impl("jitter", jitter);
  m.impl("features_uniform", features_uniform);
}

}  // namespace megaswitch
