#include "samples.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "rng.h"

namespace megaswitch {
namespace {

constexpr std::uint64_t kPieces = 16;  // a packed sample's key: derive(row's key, kPieces + number)

void require_inside(bool holds) {
  if (!holds) throw std::out_of_range("a document lies outside the .bin");
}

// Copies part of one document and looks for ids outside the vocabulary.
std::optional<BadId> read_part(const DocumentView& view, std::int64_t place, std::int64_t skip, std::int64_t count,
                               std::int64_t* out) {
  require_inside(place >= 0 && place < view.documents);
  const std::int64_t start = view.starts[place];
  require_inside(start >= 0 && start <= view.tokens.count && skip >= 0 && skip <= view.tokens.count - start);
  const Extremes found = read_ids(view.tokens, start + skip, count, out);
  if (found.lowest >= 0 && found.highest < view.vocab) return std::nullopt;
  const std::int64_t* bad = std::find_if(out, out + count, [&](std::int64_t id) {
    return static_cast<std::uint64_t>(id) >= static_cast<std::uint64_t>(view.vocab);
  });
  return BadId{0, place, *bad};
}

// Copies from `offset` of epoch `which` on until `room` is full, running on into the next epochs.
std::optional<BadId> gather(const StreamGroup& group, std::int64_t which, std::int64_t offset, std::int64_t room,
                            std::int64_t* out) {
  const std::int64_t documents = group.documents.documents;
  std::optional<BadId> bad;
  std::int64_t copied = 0;
  while (copied < room) {
    require_inside(which >= 0 && which < static_cast<std::int64_t>(group.epochs.size()) && offset >= 0);
    const EpochView& epoch = group.epochs[static_cast<std::size_t>(which++)];
    std::int64_t place = std::upper_bound(epoch.ends, epoch.ends + documents, offset) - epoch.ends;
    for (; copied < room && place < documents; ++place) {
      const std::int64_t before = place > 0 ? epoch.ends[place - 1] : 0;
      require_inside(before >= 0 && before <= offset && epoch.ends[place] >= offset);
      const std::int64_t count = std::min(epoch.ends[place] - offset, room - copied);
      auto found = read_part(group.documents, epoch.order[place], offset - before, count, out + copied);
      if (found && !bad) bad = found;
      copied += count;
      offset += count;
    }
    offset = 0;
  }
  return bad;
}

struct Problem {
  std::int64_t row;
  std::optional<BadId> bad;
  std::exception_ptr error;
};

}  // namespace

Row::Row(const Output& output, std::int64_t number)
    : inputs_(output.inputs + number * output.room_s),
      targets_(output.targets + number * output.room_t),
      shifted_(output.shifted + number * output.room_t),
      segments_s_(output.segments_s == nullptr ? nullptr : output.segments_s + number * output.room_s),
      segments_t_(output.segments_t == nullptr ? nullptr : output.segments_t + number * output.room_t),
      room_s_(output.room_s),
      room_t_(output.room_t) {}

void Row::add(const Rule& rule, const Special& special, const std::int64_t* tokens, std::uint64_t key,
              Scratch& scratch) {
  Cursor inputs(inputs_ + filled_s_, room_s_ - filled_s_), targets(targets_ + filled_t_, room_t_ - filled_t_);
  denoise(rule, special, tokens, key, scratch, inputs, targets);
  ++samples_;
  if (segments_s_ != nullptr) {
    std::fill_n(segments_s_ + filled_s_, inputs.filled(), samples_);
    std::fill_n(segments_t_ + filled_t_, targets.filled(), samples_);
    begins_.push_back(filled_t_);
  }
  filled_s_ += inputs.filled();
  filled_t_ += targets.filled();
}

void Row::finish() {
  std::fill(inputs_ + filled_s_, inputs_ + room_s_, 0);
  std::fill(targets_ + filled_t_, targets_ + room_t_, 0);
  if (segments_s_ != nullptr) {
    std::fill(segments_s_ + filled_s_, segments_s_ + room_s_, 0);
    std::fill(segments_t_ + filled_t_, segments_t_ + room_t_, 0);
  }
  std::copy_n(targets_, room_t_ - 1, shifted_ + 1);
  shifted_[0] = 0;
  for (const std::int64_t begin : begins_) {
    if (begin < room_t_) shifted_[begin] = 0;
  }
}

std::optional<BadId> StreamGroup::make(std::int64_t index, Row& row, Scratch& scratch) const {
  const Rule& chosen = rules.at(static_cast<std::size_t>(rule[index]));
  scratch.raw.resize(static_cast<std::size_t>(chosen.length + kStride));
  auto bad = gather(*this, epoch[index], offset[index], chosen.length, scratch.raw.data());
  if (!bad) row.add(chosen, special, scratch.raw.data(), keys[index], scratch);
  return bad;
}

std::optional<BadId> PackedGroup::make(std::int64_t index, Row& row, Scratch& scratch) const {
  require_inside(first[index] >= 0 && first[index] <= last[index] && last[index] <= pieces);
  for (std::int64_t piece = first[index]; piece < last[index]; ++piece) {
    require_inside(length[piece] >= 1 && length[piece] <= static_cast<std::int64_t>(rules.size()));
    const Rule& chosen = rules[static_cast<std::size_t>(length[piece] - 1)];
    scratch.raw.resize(static_cast<std::size_t>(chosen.length + kStride));
    auto bad = read_part(documents, place[piece], skip[piece], chosen.length, scratch.raw.data());
    if (bad) return bad;
    const std::uint64_t key = derive(keys[index], kPieces + static_cast<std::uint64_t>(piece - first[index]));
    row.add(chosen, special, scratch.raw.data(), key, scratch);
  }
  return std::nullopt;
}

std::optional<BadId> make_rows(const std::vector<std::unique_ptr<Group>>& groups, const Output& output, int threads) {
  std::vector<std::pair<const Group*, std::int64_t>> work;
  for (const auto& group : groups) {
    for (std::int64_t i = 0; i < group->count; ++i) work.emplace_back(group.get(), i);
  }
  constexpr std::size_t kChunk = 16;
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  std::optional<Problem> first;
  auto run = [&] {
    Scratch scratch;
    for (std::size_t at = next.fetch_add(kChunk); at < work.size(); at = next.fetch_add(kChunk)) {
      for (std::size_t i = at; i < std::min(at + kChunk, work.size()); ++i) {
        const auto [group, index] = work[i];
        Problem problem{group->rows[index], std::nullopt, nullptr};
        try {
          Row row(output, problem.row);
          problem.bad = group->make(index, row, scratch);
          row.finish();
        } catch (...) {
          problem.error = std::current_exception();
        }
        if (!problem.bad && problem.error == nullptr) continue;
        const std::lock_guard<std::mutex> lock(mutex);
        if (!first || problem.row < first->row) first = problem;
      }
    }
  };
  guard_maps();
  const auto most = static_cast<int>((work.size() + kChunk - 1) / kChunk);
  std::vector<std::thread> others;
  for (int i = 1; i < std::min(threads, most); ++i) others.emplace_back(run);
  run();
  for (auto& other : others) other.join();
  if (!first) return std::nullopt;
  if (first->error != nullptr) std::rethrow_exception(first->error);
  first->bad->row = first->row;
  return first->bad;
}

}  // namespace megaswitch
