// Counter-based integer generator; the numpy twin with the reasons is megaswitch/data/rng.py. Both must give the same bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

namespace megaswitch {

constexpr std::uint64_t kStep = 0x9E3779B97F4A7C15ULL;

inline std::uint64_t mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

inline std::uint64_t derive(std::uint64_t key, std::uint64_t word) { return mix(key ^ mix(word + kStep)); }

inline std::uint64_t draw(std::uint64_t key, std::uint64_t counter) { return mix(key + (counter + 1) * kStep); }

// Uniform over [0, bound) without bias; bound >= 1.
inline std::uint64_t bounded(std::uint64_t key, std::uint64_t counter, std::uint64_t bound) {
  std::uint64_t word = draw(key, counter);
  for (;;) {
    const std::uint64_t remainder = word % bound;
    if (word - remainder <= 0 - bound) return remainder;
    word = mix(word + kStep);
  }
}

// Fisher-Yates from the last place down; the partner of place i is draw i. Partners are known before they are needed, so that
// memory is asked for them early.
template <typename T>
void shuffle(T* values, std::int64_t count, std::uint64_t key) {
  constexpr std::int64_t kAhead = 32;
  std::int64_t partners[kAhead];
  for (std::int64_t last = count - 1; last > 0; last -= kAhead) {
    const std::int64_t many = std::min(kAhead, last);
    for (std::int64_t i = 0; i < many; ++i) {
      const auto place = static_cast<std::uint64_t>(last - i);
      partners[i] = static_cast<std::int64_t>(bounded(key, place, place + 1));
      __builtin_prefetch(values + partners[i], 1);
    }
    for (std::int64_t i = 0; i < many; ++i) std::swap(values[last - i], values[partners[i]]);
  }
}

}  // namespace megaswitch
