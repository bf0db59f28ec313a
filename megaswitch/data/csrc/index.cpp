#include "index.h"

#include <algorithm>
#include <deque>
#include <numeric>
#include <stdexcept>

#include "rng.h"

namespace megaswitch {
namespace {

struct OpenRow {
  std::int64_t left_s, left_t;
  std::vector<std::int64_t> samples;
};

void close(const OpenRow& row, Packing& packing) {
  packing.rows.push_back(static_cast<std::int64_t>(packing.order.size()));
  packing.order.insert(packing.order.end(), row.samples.begin(), row.samples.end());
}

}  // namespace

void build_epoch(const std::int64_t* lengths, std::int64_t count, std::uint64_t key, std::int64_t* order,
                 std::int64_t* ends) {
  constexpr std::int64_t kAhead = 32;
  std::iota(order, order + count, std::int64_t{0});
  shuffle(order, count, key);
  std::int64_t sum = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) __builtin_prefetch(lengths + order[i + kAhead]);
    ends[i] = sum += lengths[order[i]];
  }
}

Packing pack(const Sizes& sizes, std::int64_t open) {
  Packing packing;
  std::deque<OpenRow> rows;
  for (std::int64_t i = 0; i < sizes.count; ++i) {
    const std::int64_t size_s = sizes.inputs[i], size_t = sizes.targets[i];
    if (size_s < 0 || size_t < 0 || size_s > sizes.room_s || size_t > sizes.room_t) {
      throw std::out_of_range("a sample does not fit a row");
    }
    auto row = std::find_if(rows.begin(), rows.end(),
                            [&](const OpenRow& r) { return r.left_s >= size_s && r.left_t >= size_t; });
    if (row == rows.end()) {
      if (static_cast<std::int64_t>(rows.size()) >= open) {
        close(rows.front(), packing);
        rows.pop_front();
      }
      rows.push_back({sizes.room_s, sizes.room_t, {}});
      row = rows.end() - 1;
    }
    row->left_s -= size_s;
    row->left_t -= size_t;
    row->samples.push_back(i);
  }
  for (const OpenRow& row : rows) close(row, packing);
  packing.rows.push_back(static_cast<std::int64_t>(packing.order.size()));
  return packing;
}

}  // namespace megaswitch
