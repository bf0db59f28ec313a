#include "blend.h"

#include <numeric>
#include <stdexcept>

namespace megaswitch {
namespace {

using Wide = __int128;

// Tijdeman's choice: of those owed enough, the one whose deadline comes first; ties go to the lower number.
std::int64_t choose(const std::int64_t* weights, const std::int64_t* owed, std::int64_t corpora, std::int64_t total) {
  const std::int64_t scale = 2 * corpora - 2;
  std::int64_t best = -1;
  Wide best_slack = 0;
  for (std::int64_t k = 0; k < corpora; ++k) {
    const Wide scaled = static_cast<Wide>(owed[k]) * scale;
    if (scaled < total) continue;
    const Wide slack = static_cast<Wide>(total) * (scale - 1) - scaled;
    if (best < 0 || slack * weights[best] < best_slack * weights[k]) {
      best = k;
      best_slack = slack;
    }
  }
  if (best < 0) throw std::logic_error("the blend's state is not one that its rule reaches");
  return best;
}

}  // namespace

void blend_fill(const std::int64_t* weights, std::int64_t corpora, std::int64_t* owed, std::int64_t* taken,
                std::int64_t count, std::int32_t* corpus_out, std::int64_t* within_out) {
  const std::int64_t total = std::accumulate(weights, weights + corpora, std::int64_t{0});
  for (std::int64_t i = 0; i < count; ++i) {
    for (std::int64_t k = 0; k < corpora; ++k) owed[k] += weights[k];
    const std::int64_t chosen = corpora == 1 ? 0 : choose(weights, owed, corpora, total);
    owed[chosen] -= total;
    corpus_out[i] = static_cast<std::int32_t>(chosen);
    within_out[i] = taken[chosen]++;
  }
}

}  // namespace megaswitch
