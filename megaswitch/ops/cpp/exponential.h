// The exponential as plain arithmetic, which compilers turn into vectors; within two roundings of the exact one.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <type_traits>

namespace megaswitch {

template <typename W>
struct Exponential {
  static constexpr bool kDouble = std::is_same_v<W, double>;
  using Bits = std::conditional_t<kDouble, uint64_t, uint32_t>;
  static constexpr int kMantissa = kDouble ? 52 : 23;
  static constexpr Bits kBias = kDouble ? 1023 : 127;
  static constexpr W kRound = kDouble ? 0x1.8p52 : 0x1.8p23;  // added and taken away, it rounds to a whole number
  static constexpr W kLeast = kDouble ? -708 : -87;           // below it the result counts as 0
  static constexpr W kLog2e = 1.44269504088896340736;
  static constexpr W kHigh = kDouble ? 0x1.62e42fefap-1 : 0x1.62ep-1;  // ln 2 in few bits, so that times n it is exact
  static constexpr W kLow = 0.693147180559945309417 - static_cast<long double>(kHigh);
  static constexpr int kTerms = kDouble ? 13 : 7;  // of Taylor's series: at ln 2 / 2 the next is below a rounding
  static constexpr std::array<W, kTerms + 1> kSeries = [] {
    std::array<W, kTerms + 1> series{1};
    for (int i = 1; i <= kTerms; ++i) series[i] = series[i - 1] / W(i);
    return series;
  }();
};

// Of numbers that are not much above 0 (of which none is too large); NaN stays NaN.
template <typename W>
inline W exponential(W x) {
  using E = Exponential<W>;
  const W shifted = x * E::kLog2e + E::kRound, n = shifted - E::kRound;
  const W rest = (x - n * E::kHigh) - n * E::kLow;
  W sum = E::kSeries[E::kTerms];
#pragma GCC unroll 16
  for (int i = E::kTerms - 1; i >= 0; --i) sum = sum * rest + E::kSeries[i];
  const auto whole = std::bit_cast<typename E::Bits>(shifted) - std::bit_cast<typename E::Bits>(E::kRound);
  const W power = std::bit_cast<W>(static_cast<typename E::Bits>((whole + E::kBias) << E::kMantissa));
  return x < E::kLeast ? W(0) : sum * power;
}

}  // namespace megaswitch
