// Which corpus each sample of a blend comes from; the Python twin with the reasons is megaswitch/data/blend.py.
#pragma once

#include <cstdint>

namespace megaswitch {

// Continues the schedule by `count` samples, each in a time that grows with the logarithm of `corpora`. `owed` (W t - D x) and
// `taken` (x) are the state, of length `corpora`, and are updated. Weights are positive; the product of their sum (below 2^53), of
// itself and of twice the corpora must stay below 2^127.
void blend_fill(const std::int64_t* weights, std::int64_t corpora, std::int64_t* owed, std::int64_t* taken,
                std::int64_t count, std::int32_t* corpus_out, std::int64_t* within_out);

}  // namespace megaswitch
