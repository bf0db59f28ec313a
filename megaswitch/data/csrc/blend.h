// Which corpus each sample of a blend comes from; the Python twin with the reasons is megaswitch/data/blend.py.
#pragma once

#include <cstdint>

namespace megaswitch {

// Continues the schedule by `count` samples. `owed` (W t - D x) and `taken` (x) are the state, of length `corpora`, and are
// updated. Weights are positive, their sum is below 2^53, so that 128 bits hold every product.
void blend_fill(const std::int64_t* weights, std::int64_t corpora, std::int64_t* owed, std::int64_t* taken,
                std::int64_t count, std::int32_t* corpus_out, std::int64_t* within_out);

}  // namespace megaswitch
