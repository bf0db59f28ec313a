// The stateless generator of ops/reference/random.py in 32-bit integers: the same numbers.
#pragma once

#include <cmath>
#include <cstdint>

namespace megaswitch {

inline uint32_t mix(uint32_t h) {
  h = (h ^ (h >> 16)) * 0x85EBCA6Bu;
  h = (h ^ (h >> 13)) * 0xC2B2AE35u;
  return h ^ (h >> 16);
}

// The state of a counter's number. Its low half is given times kWeyl, its high half so too and with 1 added.
constexpr uint32_t kWeyl = 0x9E3779B9u;

inline uint32_t fold(uint32_t state, uint32_t low, uint32_t high) { return mix(mix(state + low) + high); }

// A run of counters that share their high half: those of features first .. first + width - 1.
struct Counters {
  uint32_t low, high;
  explicit Counters(int64_t first)
      : low(static_cast<uint32_t>(first) * kWeyl), high(static_cast<uint32_t>(first >> 32) * kWeyl + 1u) {}
  uint32_t of(uint32_t state, uint32_t feature) const { return fold(state, low + feature * kWeyl, high); }
};

// A number is (bits >> 8) / 2^24 and is compared with the rate in float: as integers, with the rate times 2^24.
inline uint32_t threshold_of(double rate) {
  return static_cast<uint32_t>(std::ceil(static_cast<double>(static_cast<float>(rate)) * 16777216.0));
}

}  // namespace megaswitch
