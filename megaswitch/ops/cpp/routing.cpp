// Positions in the queues of experts, counts of choices, and rows sorted by expert: one pass with a counter an expert.
// G groups, S tokens of a group, K choices, E experts.
#include <vector>

#include "common.h"

namespace megaswitch {
namespace {

using at::Tensor;

void check(const Tensor& index, int64_t dims) {
  TORCH_CHECK(index.scalar_type() == at::kLong && index.dim() == dims, "index: int64 in ", dims, " dimensions");
}

int64_t checked(int64_t expert, int64_t experts) {
  TORCH_CHECK_INDEX(expert < experts, "expert ", expert, " of ", experts);
  return expert;
}

// place of each token among its group's tokens of the same expert, and tokens of each expert; -1 is no expert
std::tuple<Tensor, Tensor> queue(const Tensor& index_in, int64_t experts) {
  check(index_in, 2);
  const Tensor index = index_in.contiguous();
  const int64_t groups = index.size(0), tokens = index.size(1);
  Tensor position = at::empty({groups, tokens}, index.options()), count = at::zeros({groups, experts}, index.options());
  const int64_t* ip = index.const_data_ptr<int64_t>();
  int64_t *pp = position.data_ptr<int64_t>(), *cp = count.data_ptr<int64_t>();
  at::parallel_for(0, groups, grain(tokens), [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      for (int64_t s = g * tokens; s < (g + 1) * tokens; ++s) {
        pp[s] = ip[s] < 0 ? 0 : cp[g * experts + checked(ip[s], experts)]++;
      }
    }
  });
  return {position, count};
}

// [G, K, E]: tokens of each group that name each expert in each round
Tensor count_choices(const Tensor& index_in, int64_t experts) {
  check(index_in, 3);
  const Tensor index = index_in.contiguous();
  const int64_t groups = index.size(0), tokens = index.size(1), rounds = index.size(2);
  Tensor count = at::zeros({groups, rounds, experts}, index.options());
  const int64_t* ip = index.const_data_ptr<int64_t>();
  int64_t* cp = count.data_ptr<int64_t>();
  at::parallel_for(0, groups, grain(tokens * rounds), [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      for (int64_t i = 0; i < tokens * rounds; ++i) {
        const int64_t expert = ip[g * tokens * rounds + i];
        if (expert >= 0) ++cp[(g * rounds + i % rounds) * experts + checked(expert, experts)];
      }
    }
  });
  return count;
}

// the stable order of numbers 0 .. lanes - 1, where each comes in it, and how many there are of each lane
std::tuple<Tensor, Tensor, Tensor> lane_order(const Tensor& lane_in, int64_t lanes) {
  check(lane_in, 1);
  const Tensor lane = lane_in.contiguous();
  const int64_t rows = lane.numel();
  Tensor order = at::empty({rows}, lane.options()), place = at::empty({rows}, lane.options()),
         count = at::zeros({lanes}, lane.options());
  const int64_t* lp = lane.const_data_ptr<int64_t>();
  int64_t *op = order.data_ptr<int64_t>(), *pp = place.data_ptr<int64_t>(), *cp = count.data_ptr<int64_t>();
  for (int64_t i = 0; i < rows; ++i) {
    TORCH_CHECK_INDEX(lp[i] >= 0, "lane ", lp[i]);
    ++cp[checked(lp[i], lanes)];
  }
  std::vector<int64_t> next(lanes, 0);
  for (int64_t lane_ = 1; lane_ < lanes; ++lane_) next[lane_] = next[lane_ - 1] + cp[lane_ - 1];
  for (int64_t i = 0; i < rows; ++i) {
    pp[i] = next[lp[i]]++;
    op[pp[i]] = i;
  }
  return {order, place, count};
}

}  // namespace

TORCH_LIBRARY_IMPL(megaswitch_cpp, CPU, m) {
  m.impl("queue", queue);
  m.impl("count_choices", count_choices);
  m.impl("lane_order", lane_order);
}

}  // namespace megaswitch
