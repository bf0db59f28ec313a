// Multiplication of a row by the stateless generator's numbers near 1.
#pragma once

#include "common.h"
#include "random.h"

namespace megaswitch {

// A number in another type, rounded where that is a narrower one.
template <typename Out, typename T>
inline Out stored(T value) {
  return narrow<Out>(static_cast<wide_t<Out>>(value));
}

// Factors from 1 - size to 1 + size in double, rounded to the type T that they multiply, as is what comes out before it is
// stored in another type.
template <typename T, typename X, typename Out>
void jitter_row(const X* x, uint32_t state, double size, Out* out, int64_t width) {
  using W = wide_t<T>;
  const Counters counters(0);
  const double least = 1.0 - size, step = size * 0x1p-23;
#pragma omp simd
  for (int64_t f = 0; f < width; ++f) {
    const int32_t bits = static_cast<int32_t>(counters.of(state, static_cast<uint32_t>(f)) >> 8);
    const double factor = least + step * bits;
    out[f] = stored<Out>(narrow<T>(W(x[f]) * W(narrow<T>(static_cast<W>(factor)))));
  }
}

}  // namespace megaswitch
