// Fills the rows of a batch from memory maps on several threads; the numpy twins are in megaswitch/data/parts.py.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "denoise.h"
#include "tokens.h"

namespace megaswitch {

// Where the rows go: arrays of `rows` rows, written whole. Segments are null where rows hold one sample each.
struct Output {
  std::int64_t rows, room_s, room_t;
  std::int64_t *inputs, *targets, *shifted, *segments_s, *segments_t;
};

// An id outside the vocabulary, or worse: the row it was met in, the document's place, the id.
struct BadId {
  std::int64_t row, place, id;
};

// Documents of one part of a corpus, as it says: nothing of it is believed.
struct DocumentView {
  Tokens tokens;
  const std::int64_t* starts;
  std::int64_t documents, vocab;
};

// One row in the making.
class Row {
 public:
  Row(const Output& output, std::int64_t number);
  // Adds one sample; a row of several numbers them from 1.
  void add(const Rule& rule, const Special& special, const std::int64_t* tokens, std::uint64_t key, Scratch& scratch);
  // Pads, and makes the decoder's input: the targets shifted right, a 0 in front of each sample.
  void finish();

 private:
  std::int64_t *inputs_, *targets_, *shifted_, *segments_s_, *segments_t_;
  std::int64_t room_s_, room_t_, filled_s_ = 0, filled_t_ = 0, samples_ = 0;
  std::vector<std::int64_t> begins_;
};

// Rows that are made alike, of one part.
struct Group {
  virtual ~Group() = default;
  virtual std::optional<BadId> make(std::int64_t index, Row& row, Scratch& scratch) const = 0;
  Special special{};
  const std::int64_t* rows = nullptr;  // the output's row of each index
  std::int64_t count = 0;
};

// Pieces of an endless stream: epochs of documents in orders of their own. ends[j] = tokens of order[0] .. order[j] together.
struct EpochView {
  const std::int64_t *order, *ends;
};
struct StreamGroup : Group {
  std::optional<BadId> make(std::int64_t index, Row& row, Scratch& scratch) const override;
  DocumentView documents{};
  std::vector<EpochView> epochs;
  const std::int64_t *epoch = nullptr, *offset = nullptr, *rule = nullptr;  // of each index
  const std::uint64_t* keys = nullptr;
  std::vector<Rule> rules;
};

// Rows of several pieces of documents each: pieces first[i] .. last[i] - 1.
struct PackedGroup : Group {
  std::optional<BadId> make(std::int64_t index, Row& row, Scratch& scratch) const override;
  DocumentView documents{};
  const std::int64_t *place = nullptr, *skip = nullptr, *length = nullptr;  // of each piece
  std::int64_t pieces = 0;
  const std::int64_t *first = nullptr, *last = nullptr;  // of each index
  const std::uint64_t* keys = nullptr;
  std::vector<Rule> rules;  // by length, from 1
};

// Makes every row of every group. Returns the first bad id by row; throws the first other problem.
std::optional<BadId> make_rows(const std::vector<std::unique_ptr<Group>>& groups, const Output& output, int threads);

}  // namespace megaswitch
