// Routing in one pass over the tokens: jitter, logits, softmax, choices, places in queues and sums of probabilities.
// T tokens, G groups, E experts, K choices.
#include <cmath>
#include <limits>
#include <vector>

#include "common.h"
#include "exponential.h"
#include "logits.h"

namespace megaswitch {
namespace {

using at::Tensor;

constexpr int64_t kFew = 8;     // logits whose greatest is found at once
constexpr int64_t kBlock = 64;  // most tokens of a group whose probabilities are summed by one thread

// Calls `work` with the number of choices, as a constant where it is 1: loops over them would take as long as a row of
// few logits does.
template <typename F>
void with_choices(int64_t choices, F work) {
  if (choices == 1) {
    work(std::integral_constant<int64_t, 1>());
  } else {
    work(choices);
  }
}

// The first of the greatest numbers, looked for one by one only among the few that have it. Inlined: a call is
// felt where logits are few.
template <typename W>
inline __attribute__((always_inline)) int64_t first_greatest(const W* x, int64_t width, W* greatest) {
  W most = -std::numeric_limits<W>::infinity();
  int64_t index = 0, begin = 0;
  for (; begin + kFew <= width; begin += kFew) {
    W here = most;
#pragma omp simd reduction(max : here)
    for (int64_t e = 0; e < kFew; ++e) here = std::max(here, x[begin + e]);
    if (here > most) most = here, index = begin;
  }
  W last = most;
#pragma omp simd reduction(max : last)
  for (int64_t e = begin; e < width; ++e) last = std::max(last, x[e]);
  if (last > most) most = last, index = begin;
  *greatest = most;
  while (index < width && x[index] != most) ++index;
  return index < width ? index : 0;
}

template <typename W>
struct Row {
  W log_z, entropy, inverse;
};

// Places of the greatest of logits + noise, best first, and the greatest logit. `left` has room for a row.
template <typename W, typename K>
W choose(const W* logits, const W* noise, W* left, int64_t width, int64_t* index, K choices) {
  using Limits = std::numeric_limits<W>;
  W greatest, unused;
  index[0] = first_greatest(logits, width, &greatest);
  if (!noise && choices == 1) return greatest;
#pragma omp simd
  for (int64_t e = 0; e < width; ++e) {
    // what is chosen counts as less than experts without a chance, so that none is chosen twice
    left[e] = std::max(Limits::lowest(), noise ? logits[e] + noise[e] : logits[e]);
  }
  if (noise) index[0] = first_greatest(left, width, &unused);
  for (int64_t k = 1; k < choices; ++k) {
    left[index[k - 1]] = -Limits::infinity();
    index[k] = first_greatest(left, width, &unused);
  }
  return greatest;
}

// What is said of a token; exp(logit - greatest) stays in `powers`. Both buffers have room for a row.
template <typename W, typename K>
Row<W> route_row(const W* logits, const W* noise, W* left, W* powers, int64_t width, int64_t* index, W* gate,
                 K choices) {
  Row<W> row;
  const W greatest = choose(logits, noise, left, width, index, choices);
  W sum = 0, weighted = 0;
#pragma omp simd reduction(+ : sum, weighted)
  for (int64_t e = 0; e < width; ++e) {
    const W below = logits[e] - greatest, power = exponential(below);
    powers[e] = power;
    sum += power;
    weighted += power > W(0) ? power * below : W(0);
  }
  row.inverse = W(1) / sum;
  for (int64_t k = 0; k < choices; ++k) gate[k] = powers[index[k]] * row.inverse;
  row.log_z = greatest + std::log(sum);
  row.entropy = std::log(sum) - weighted * row.inverse;
  return row;
}

// log sum exp is a bound that no logit is above; its rounding falls out with the sum of the powers. `through` has room for
// what comes through the gates.
template <typename W, typename K>
void gradient_row(const W* logits, W log_z, const W* grad_probs, W grad_log_z, const int64_t* index,
                  const W* grad_gate, K choices, W* through, W* out, int64_t width) {
  W sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
  for (int64_t e = 0; e < width; ++e) {
    out[e] = exponential(logits[e] - log_z);
    sum += out[e];
    dot += out[e] * grad_probs[e];
  }
  const W inverse = W(1) / sum;
  W all = grad_log_z - dot * inverse;
  for (int64_t k = 0; k < choices; ++k) {
    through[k] = grad_gate[k] * out[index[k]] * inverse;
    all -= through[k];
  }
#pragma omp simd
  for (int64_t e = 0; e < width; ++e) out[e] *= inverse * (grad_probs[e] + all);
  for (int64_t k = 0; k < choices; ++k) out[index[k]] += through[k];
}

template <typename W>
void add_row(const W* powers, W inverse, W* sum, int64_t width) {
#pragma omp simd
  for (int64_t e = 0; e < width; ++e) sum[e] += powers[e] * inverse;
}

// A run of tokens of one group.
struct Run {
  int64_t begin, end, group;
};

std::vector<Run> runs_of(const int64_t* group, int64_t tokens) {
  std::vector<Run> runs;
  for (int64_t t = 0; t < tokens; ++t) {
    if (runs.empty() || runs.back().group != group[t] || t - runs.back().begin == kBlock) {
      runs.push_back({t, t, group[t]});
    }
    runs.back().end = t + 1;
  }
  return runs;
}

void check(const Tensor& logits, const Tensor& group, const Tensor& real) {
  const auto type = logits.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kDouble, "logits: float32 or float64");
  TORCH_CHECK(group.scalar_type() == at::kLong && group.numel() == logits.size(0), "group: one int64 number a token");
  TORCH_CHECK(real.scalar_type() == at::kBool && real.numel() == logits.size(0), "real: one bool a token");
}

// Choices of a run's tokens, counted: [choices, experts] of each run, and each real token's place among those before it
// in its run with the same first choice.
class Queues {
 public:
  Queues(int64_t runs, int64_t choices, int64_t width)
      : choices_(choices), width_(width), counts_(runs * choices * width, 0) {}

  // The token's place in its run.
  int64_t add(int64_t run, const int64_t* index) {
    int64_t* count = counts_.data() + run * choices_ * width_;
    const int64_t place = count[index[0]];
    for (int64_t k = 0; k < choices_; ++k) ++count[k * width_ + index[k]];
    return place;
  }

  // Adds what came before in the group to the run's places, and the run's counts to the group's [choices, experts].
  void settle(int64_t run, const Run& tokens, const bool* real, const int64_t* index, int64_t* place, int64_t* group) {
    for (int64_t t = tokens.begin; t < tokens.end; ++t) {
      if (real[t]) place[t] += group[index[t * choices_]];
    }
    const int64_t* count = counts_.data() + run * choices_ * width_;
    for (int64_t i = 0; i < choices_ * width_; ++i) group[i] += count[i];
  }

 private:
  int64_t choices_, width_;
  std::vector<int64_t> counts_;
};

// Of tokens x, or where there is no weight of logits: the logits that were made, indices, gates, log sum exp, entropy,
// sums of probabilities over the real tokens of each group (in an order that does not depend on the number of threads);
// where groups are whole, places in the queues of first choices and how many tokens name each expert [groups, choices,
// experts]
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& x, const std::optional<Tensor>& weight, const std::optional<Tensor>& states, double size,
    const std::optional<Tensor>& noise_in, const Tensor& group_in, const Tensor& real_in, int64_t groups, bool whole,
    int64_t choices) {
  const Tensor group = group_in.contiguous(), real = real_in.contiguous();
  const Tensor logits = weight ? empty_logits(x, *weight) : x.contiguous();
  check(logits, group, real);
  const Score score = weight ? score_of(x, *weight, states, size, logits) : Score();
  const Tensor noise = noise_in ? noise_in->contiguous() : Tensor();
  const int64_t tokens = logits.size(0), width = logits.size(1);
  TORCH_CHECK(0 < choices && choices <= width, choices, " choices of ", width, " experts");
  const auto options = logits.options();
  Tensor index = at::empty({tokens, choices}, options.dtype(at::kLong)), sums = at::zeros({groups, width}, options);
  Tensor gate = at::empty({tokens, choices}, options), log_z = at::empty({tokens}, options),
         entropy = at::empty({tokens}, options);
  Tensor place = at::zeros({whole ? tokens : 0}, index.options()),
         count = at::zeros({whole ? groups : 0, choices, width}, index.options());
  AT_DISPATCH_FLOATING_TYPES(logits.scalar_type(), "route_forward", [&] {
    using W = scalar_t;
    const W *lp = logits.const_data_ptr<W>(), *np = noise_in ? noise.const_data_ptr<W>() : nullptr;
    const bool* rp = real.const_data_ptr<bool>();
    int64_t *ip = index.data_ptr<int64_t>(), *place_p = place.data_ptr<int64_t>();
    W *gp = gate.data_ptr<W>(), *zp = log_z.data_ptr<W>(), *ep = entropy.data_ptr<W>(), *sp = sums.data_ptr<W>();
    const std::vector<Run> runs = runs_of(group.const_data_ptr<int64_t>(), tokens);
    std::vector<W> parts(runs.size() * width, W(0));
    Queues queues(whole ? runs.size() : 0, choices, width);
    with_choices(choices, [&](auto K) {
      const int64_t least = score ? 1 : grain(width * kBlock);
      at::parallel_for(0, runs.size(), least, [=, &runs, &parts, &queues, &score](int64_t begin, int64_t end) {
        std::vector<W> powers(width), left(width);
        for (int64_t r = begin; r < end; ++r) {
          if (score) score(runs[r].begin, runs[r].end);
          W* part = parts.data() + r * width;
          for (int64_t t = runs[r].begin; t < runs[r].end; ++t) {
            const W* noise_row = np ? np + t * width : nullptr;
            const Row<W> row =
                route_row(lp + t * width, noise_row, left.data(), powers.data(), width, ip + t * K, gp + t * K, K);
            zp[t] = row.log_z, ep[t] = row.entropy;
            if (rp[t]) add_row(powers.data(), row.inverse, part, width);
            if (rp[t] && whole) place_p[t] = queues.add(r, ip + t * K);
          }
        }
      });
    });
    for (size_t r = 0; r < runs.size(); ++r) {
      W* sum = sp + runs[r].group * width;
      for (int64_t e = 0; e < width; ++e) sum[e] += parts[r * width + e];
      int64_t* named = count.data_ptr<int64_t>() + runs[r].group * choices * width;
      if (whole) queues.settle(r, runs[r], rp, ip, place_p, named);
    }
  });
  const Tensor made = weight ? logits : at::empty({0, width}, options);
  return {made, index, gate, log_z, entropy, sums, place, count};
}

// gradient of the logits from those of gates, log sum exp and the groups' sums
Tensor backward(const Tensor& logits_in, const Tensor& log_z_in, const Tensor& index, const Tensor& group,
                const Tensor& real, const Tensor& grad_gate_in, const Tensor& grad_log_z_in,
                const Tensor& grad_probs_in) {
  const Tensor logits = logits_in.contiguous(), log_z = log_z_in.contiguous(), groups = group.contiguous(), reals = real.contiguous();
  check(logits, groups, reals);
  const Tensor grad_gate = grad_gate_in.contiguous(), grad_log_z = grad_log_z_in.contiguous(),
               grad_probs = grad_probs_in.contiguous();
  const int64_t tokens = logits.size(0), width = logits.size(1);
  Tensor out = at::empty(logits.sizes(), logits.options());
  AT_DISPATCH_FLOATING_TYPES(logits.scalar_type(), "route_backward", [&] {
    using W = scalar_t;
    const std::vector<W> zeros(width, W(0));
    const W *lp = logits.const_data_ptr<W>(), *mp = log_z.const_data_ptr<W>(), *dp = grad_gate.const_data_ptr<W>(),
            *zp = grad_log_z.const_data_ptr<W>(), *sp = grad_probs.const_data_ptr<W>();
    const int64_t *ip = index.const_data_ptr<int64_t>(), *np = groups.const_data_ptr<int64_t>();
    const bool* rp = reals.const_data_ptr<bool>();
    W* op = out.data_ptr<W>();
    with_choices(index.size(1), [&](auto K) {
      at::parallel_for(0, tokens, grain(width), [&](int64_t begin, int64_t end) {
        std::vector<W> through(K);
        for (int64_t t = begin; t < end; ++t) {
          const W* of_sums = rp[t] ? sp + np[t] * width : zeros.data();
          gradient_row(lp + t * width, mp[t], of_sums, zp[t], ip + t * K, dp + t * K, K, through.data(),
                       op + t * width, width);
        }
      });
    });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(megaswitch_cpp, CPU, m) {
  m.impl("route_forward", forward);
  m.impl("route_backward", backward);
}

}  // namespace megaswitch
