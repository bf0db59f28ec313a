// What the kernels share: types to compute in, rows spread over threads.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cstdint>

namespace megaswitch {

// "float32 means at least float32": narrower types are computed in float.
template <typename T>
using wide_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
constexpr at::ScalarType wide_type() {
  return std::is_same_v<T, double> ? at::kDouble : at::kFloat;
}

// Rows of so many numbers are worth a thread of their own from some ten thousand numbers on.
inline int64_t grain(int64_t width) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width));
}

}  // namespace megaswitch

#define MEGASWITCH_DISPATCH(TYPE, NAME, ...) AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, TYPE, NAME, __VA_ARGS__)
