// What is computed once for an epoch or a corpus; the numpy twins are in megaswitch/data/index.py.
#pragma once

#include <cstdint>
#include <vector>

namespace megaswitch {

// order = the numbers 0 .. count - 1 shuffled by `key`, ends = running sum of lengths in that order.
void build_epoch(const std::int64_t* lengths, std::int64_t count, std::uint64_t key, std::int64_t* order,
                 std::int64_t* ends);

// Samples laid into rows, row after row: order = their numbers, rows[r] = the place in it of row r's first; the last entry is their number.
struct Packing {
  std::vector<std::int64_t> order, rows;
};

// What samples take of both sides of a row, and what a row has.
struct Sizes {
  const std::int64_t *inputs, *targets;
  std::int64_t count, room_s, room_t;
};

// Each sample is laid into the first of `open` open rows that has room; where none has, the oldest is closed.
Packing pack(const Sizes& sizes, std::int64_t open);

}  // namespace megaswitch
