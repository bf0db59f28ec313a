// What the kernels share: types to compute in, rows spread over threads.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <bit>
#include <cstdint>

namespace megaswitch {

// "float32 means at least float32": narrower types are computed in float.
template <typename T>
using wide_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
constexpr at::ScalarType wide_type() {
  return std::is_same_v<T, double> ? at::kDouble : at::kFloat;
}

// A computed number in the type it is stored in. For bfloat16 torch's own rounding, without the branch that keeps loops
// from being vectorised.
template <typename T>
inline T narrow(wide_t<T> value) {
  if constexpr (std::is_same_v<T, c10::BFloat16>) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const uint32_t nearest = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    const uint32_t kept = (bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : nearest;
    return c10::BFloat16(static_cast<uint16_t>(kept), c10::BFloat16::from_bits());
  } else {
    return static_cast<T>(value);
  }
}

// Rows of so many numbers are worth a thread of their own from some ten thousand numbers on.
inline int64_t grain(int64_t width) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width));
}

}  // namespace megaswitch

#define MEGASWITCH_DISPATCH(TYPE, NAME, ...) AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, TYPE, NAME, __VA_ARGS__)
