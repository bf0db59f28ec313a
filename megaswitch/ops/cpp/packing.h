// Matrices as the operands of `product.h`: rows as they are, panels of columns, and sums as the next product's operands.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "product.h"

namespace megaswitch {

#if MEGASWITCH_PAIRS
// Numbers a and then b, rounded.
inline __m512i rounded(const float* a, const float* b) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(b), _mm512_loadu_ps(a)));
}

// `count` numbers, of whole panels, rounded into pairs of neighbours.
inline void round_row(const float* x, int64_t count, Pair* out) {
  for (int64_t m = 0; m < count; m += 32) _mm512_storeu_si512(out + m / 2, rounded(x + m, x + m + 16));
}

// Likewise of two rows, the pairs being of one number of each.
inline void round_rows(const float* x, const float* y, int64_t count, Pair* out) {
  alignas(64) static constexpr auto kAlternate = [] {
    std::array<uint16_t, 32> from{};
    for (uint16_t i = 0; i < 32; ++i) from[i] = i / 2 + i % 2 * 16;
    return from;
  }();
  const __m512i alternate = _mm512_load_si512(kAlternate.data());
  for (int64_t m = 0; m < count; m += 16) {
    _mm512_storeu_si512(out + m, _mm512_permutexvar_epi16(alternate, rounded(x + m, y + m)));
  }
}

// A vector of so many numbers, of which there may be more or none, and zeros.
inline __m512i some_numbers(const c10::BFloat16* x, int64_t count) {
  const __mmask32 there = count < 32 ? (__mmask32{1} << std::max<int64_t>(count, 0)) - 1 : ~__mmask32{0};
  return _mm512_maskz_loadu_epi16(there, x);
}

// Two vectors of pairs, of a number from each of two rows; the second row is zeros where it is null.
inline void pair_rows(const c10::BFloat16* x, const c10::BFloat16* y, int64_t count, Pair* out) {
  alignas(64) static constexpr auto kAlternate = [] {
    std::array<uint16_t, 64> from{};
    for (uint16_t i = 0; i < 64; ++i) from[i] = i / 2 + i % 2 * 32;
    return from;
  }();
  const __m512i a = some_numbers(x, count), b = y ? some_numbers(y, count) : _mm512_setzero_si512();
  for (int half = 0; half < 2; ++half) {
    const __m512i alternate = _mm512_load_si512(kAlternate.data() + 32 * half);
    _mm512_storeu_si512(out + 16 * half, _mm512_permutex2var_epi16(a, alternate, b));
  }
}
#endif

// Fetches what is read, or written, some rows later: rows of one head lie too far apart for the processor to guess.
template <bool kWritten = false, typename T>
inline void fetch_ahead(const T* x, int64_t columns, int64_t row) {
  for (int64_t d = 0; d < columns; d += 64 / sizeof(T)) __builtin_prefetch(x + 24 * row + d, kWritten);
}

// Rows of numbers as operands along the depth, `width` operands apart.
template <typename E, typename T>
void copy_rows(const T* x, int64_t rows, int64_t columns, int64_t row, E* out, int64_t width) {
  for (int64_t i = 0; i < rows; ++i, x += row, out += width) {
    fetch_ahead(x, columns, row);
    if constexpr (kPairs<E>) {
      std::memcpy(out, x, columns / 2 * sizeof(E));
      if (columns % 2) out[columns / 2].bits = x[columns - 1].x;
    } else {
      for (int64_t d = 0; d < columns; ++d) out[d] = E(x[d]);
    }
  }
}

// Panels of a matrix whose rows, `row` numbers apart, are the depth.
template <typename E, int N = 2, typename T>
void pack(const T* x, int64_t rows, int64_t columns, int64_t row, E* out) {
  constexpr int64_t P = kPanel<E, N>;
  for (int64_t d = 0; d < rows; d += kNumbers<E>, x += kNumbers<E> * row, out += P) {
    const T* next = d + 1 < rows ? x + row : nullptr;
    for (int64_t i = 0; i < kNumbers<E>; ++i) fetch_ahead(x + i * row, columns, row);
    for (int64_t n = 0; n < columns; n += P) {
      E* to = out + n * operands<E>(rows);
      const int64_t count = std::min(P, columns - n);
      if constexpr (kPairs<E>) {
        for (int64_t i = 0; i < P; i += 32) pair_rows(x + n + i, next ? next + n + i : nullptr, count - i, to + i);
      } else {
        for (int64_t i = 0; i < count; ++i) to[i] = E(x[n + i]);
        for (int64_t i = count; i < P; ++i) to[i] = E{};
      }
    }
  }
}

// y[columns, rows] = x[rows, columns], by what moves numbers of the same size.
template <typename E>
void transpose(const E* x, int64_t rows, int64_t columns, int64_t row, E* y, int64_t width) {
  using W = sum_t<E>;
  at::vec::transpose_mxn<W>(reinterpret_cast<const W*>(x), row, reinterpret_cast<W*>(y), width, rows, columns);
}

// Panels of the transposed matrix: its rows are the columns, and `depth` numbers of each.
template <typename E, int N = 2, typename T>
void pack_transposed(const T* x, int64_t rows, int64_t depth, int64_t row, E* out) {
  constexpr int64_t kStep = 32, P = kPanel<E, N>;
  E block[P * kStep];
  for (int64_t n = 0; n < rows; n += P) {
    const int64_t count = std::min(P, rows - n);
    if (count < P) std::fill_n(block, P * kStep, E{});
    for (int64_t d = 0; d < depth; d += kStep * kNumbers<E>) {
      const int64_t some = std::min(kStep * kNumbers<E>, depth - d);
      copy_rows(x + n * row + d, count, some, row, block, kStep);
      transpose(block, P, operands<E>(some), kStep, out, P);
      out += operands<E>(some) * P;
    }
  }
}

// Sums, in rows of whole panels `width` apart, as the left operand of the next product, to which their columns are the
// depth: as they are, or rounded into `out`, which may be where they are.
template <typename E>
Matrix<E> as_operand(const sum_t<E>* x, int64_t rows, int64_t columns, int64_t width, E* out) {
  if constexpr (kPairs<E>) {
    for (int64_t i = 0; i < rows; ++i) round_row(x + i * width, columns, out + i * width / 2);
    return {out, width / 2, 1};
  } else {
    return {x, width, 1};
  }
}

// Likewise transposed: their rows are the depth. After an odd number of rows, one of zeros is written.
template <typename E>
Matrix<E> as_transposed_operand(sum_t<E>* x, int64_t rows, int64_t columns, int64_t width, E* out) {
  if constexpr (kPairs<E>) {
    if (rows % 2) std::fill_n(x + rows * width, columns, 0.0f);
    for (int64_t i = 0; i < rows; i += 2) round_rows(x + i * width, x + (i + 1) * width, columns, out + i / 2 * width);
    return {out, 1, width};
  } else {
    return {x, 1, width};
  }
}

template <typename E>
E* in_place(sum_t<E>* x) {
  return reinterpret_cast<E*>(x);
}

}  // namespace megaswitch
