// Reads tokens of an epoch's stream of documents from the memory map; the numpy twin is megaswitch/data/stream.py.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>

namespace megaswitch {

// One epoch: documents in their shuffled order. ends[j] = tokens of documents order[0] .. order[j] together.
struct Epoch {
  const std::int64_t* starts;  // by document: first token in the .bin
  const std::int64_t* order;
  const std::int64_t* ends;
  std::int64_t documents;
};

struct Gathered {
  std::int64_t copied;
  std::int64_t bad_document;  // first document with an id outside the vocabulary, or -1
  std::int64_t bad_id;
};

// Copies tokens from `offset` of the epoch on, until `room` is full or the epoch ends.
template <typename T>
Gathered gather(const T* tokens, std::int64_t num_tokens, const Epoch& epoch, std::int64_t offset, std::int64_t vocab,
                std::int64_t* out, std::int64_t room) {
  Gathered result{0, -1, 0};
  std::int64_t place = std::upper_bound(epoch.ends, epoch.ends + epoch.documents, offset) - epoch.ends;
  while (result.copied < room && place < epoch.documents) {
    const std::int64_t before = place > 0 ? epoch.ends[place - 1] : 0;
    const std::int64_t skip = offset + result.copied - before;
    const std::int64_t count = std::min(epoch.ends[place] - before - skip, room - result.copied);
    const std::int64_t first = epoch.starts[epoch.order[place]] + skip;
    if (first < 0 || count < 0 || first > num_tokens - count) throw std::out_of_range("a document lies outside the .bin");
    for (std::int64_t i = 0; i < count; ++i) {
      const auto id = static_cast<std::int64_t>(tokens[first + i]);
      out[result.copied + i] = id;
      if (static_cast<std::uint64_t>(id) >= static_cast<std::uint64_t>(vocab) && result.bad_document < 0) {
        result.bad_document = epoch.order[place];
        result.bad_id = id;
      }
    }
    result.copied += count;
    ++place;
  }
  return result;
}

}  // namespace megaswitch
