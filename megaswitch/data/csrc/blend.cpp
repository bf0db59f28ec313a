#include "blend.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <queue>
#include <stdexcept>
#include <utility>
#include <vector>

namespace megaswitch {
namespace {

using Wide = __int128;

// The window in which a corpus's next sample must be taken, in steps of this block, which count from 1. Both borders move by
// total / weight, exactly, from sample to sample: a whole part, and a rest in units of 1 / unit.
class Window {
 public:
  Window(std::int64_t weight, std::int64_t owed, std::int64_t corpora, std::int64_t total)
      : step_(total / weight), unit_((2 * static_cast<Wide>(corpora) - 2) * weight) {
    const Wide scale = 2 * static_cast<Wide>(corpora) - 2;
    step_rest_ = scale * (total % weight);
    const Wide release = total - scale * owed;
    split(release + unit_ - 1, release_, release_rest_);  // rounded up
    split(release + (scale - 2) * total, deadline_, deadline_rest_);
    ++deadline_;
  }

  std::int64_t release() const { return release_; }
  std::int64_t deadline() const { return deadline_; }

  void advance() {
    move(release_, release_rest_);
    move(deadline_, deadline_rest_);
  }

 private:
  void split(Wide value, std::int64_t& whole, Wide& rest) const {
    Wide quotient = value / unit_;
    rest = value % unit_;
    if (rest < 0) {
      --quotient;
      rest += unit_;
    }
    whole = static_cast<std::int64_t>(quotient);
  }

  void move(std::int64_t& whole, Wide& rest) const {
    whole += step_;
    rest += step_rest_;
    if (rest >= unit_) {
      rest -= unit_;
      ++whole;
    }
  }

  std::int64_t step_, release_, deadline_;
  Wide unit_, step_rest_, release_rest_, deadline_rest_;
};

// Corpora whose next sample may be taken, by deadline, and the others by the step at which it may: a list for each step.
class Schedule {
 public:
  Schedule(const std::int64_t* weights, const std::int64_t* owed, std::int64_t corpora, std::int64_t count)
      : first_(static_cast<std::size_t>(count) + 1, -1), next_(static_cast<std::size_t>(corpora), -1) {
    const std::int64_t total = std::accumulate(weights, weights + corpora, std::int64_t{0});
    for (std::int64_t k = 0; k < corpora; ++k) {
      windows_.emplace_back(weights[k], owed[k], corpora, total);
      wait(k);
    }
  }

  std::int64_t take(std::int64_t step) {
    for (std::int64_t k = first_[static_cast<std::size_t>(step)]; k >= 0; k = next_[static_cast<std::size_t>(k)]) {
      ready_.emplace(windows_[static_cast<std::size_t>(k)].deadline(), k);
    }
    if (ready_.empty()) throw std::logic_error("the blend's state is not one that its rule reaches");
    const std::int64_t chosen = ready_.top().second;
    ready_.pop();
    windows_[static_cast<std::size_t>(chosen)].advance();
    wait(chosen, step);
    return chosen;
  }

 private:
  // What is released after this block's end is of no interest to it.
  void wait(std::int64_t k, std::int64_t now = 0) {
    const std::int64_t release = std::max(windows_[static_cast<std::size_t>(k)].release(), now + 1);
    if (release >= static_cast<std::int64_t>(first_.size())) return;
    next_[static_cast<std::size_t>(k)] = first_[static_cast<std::size_t>(release)];
    first_[static_cast<std::size_t>(release)] = k;
  }

  using Entry = std::pair<std::int64_t, std::int64_t>;  // deadline, corpus
  std::vector<Window> windows_;
  std::vector<std::int64_t> first_, next_;
  std::priority_queue<Entry, std::vector<Entry>, std::greater<>> ready_;
};

}  // namespace

void blend_fill(const std::int64_t* weights, std::int64_t corpora, std::int64_t* owed, std::int64_t* taken,
                std::int64_t count, std::int32_t* corpus_out, std::int64_t* within_out) {
  if (corpora == 1) {
    std::fill_n(corpus_out, count, 0);
    std::iota(within_out, within_out + count, taken[0]);
    taken[0] += count;
    return;
  }
  Schedule schedule(weights, owed, corpora, count);
  const std::vector<std::int64_t> before(taken, taken + corpora);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t chosen = schedule.take(i + 1);
    corpus_out[i] = static_cast<std::int32_t>(chosen);
    within_out[i] = taken[chosen]++;
  }
  const std::int64_t total = std::accumulate(weights, weights + corpora, std::int64_t{0});
  for (std::int64_t k = 0; k < corpora; ++k) {
    const Wide change = static_cast<Wide>(weights[k]) * count - static_cast<Wide>(total) * (taken[k] - before[static_cast<std::size_t>(k)]);
    owed[k] += static_cast<std::int64_t>(change);
  }
}

}  // namespace megaswitch
