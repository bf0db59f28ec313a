#include "denoise.h"

#include <algorithm>

#include "rng.h"

namespace megaswitch {
namespace {

// Lengths of `segments` non-empty parts of `items`, all compositions alike: a part ends behind `segments - 1` of the first items - 1
// items, chosen without repetition (Floyd), and behind the last. Written to every second place of `runs`.
void draw_lengths(std::int64_t items, std::int64_t segments, std::uint64_t key, std::vector<std::uint64_t>& last,
                  std::int64_t* runs) {
  last.assign(static_cast<std::size_t>(items) / 64 + 1, 0);
  const auto mark = [&](std::int64_t item) {  // whether it was marked before
    std::uint64_t& word = last[static_cast<std::size_t>(item) / 64];
    const std::uint64_t bit = std::uint64_t{1} << (item % 64);
    const bool marked = (word & bit) != 0;
    word |= bit;
    return marked;
  };
  const std::int64_t places = items - 1;
  for (std::int64_t j = places - (segments - 1); j < places; ++j) {
    const auto bound = static_cast<std::uint64_t>(j) + 1;
    if (mark(static_cast<std::int64_t>(bounded(key, bound - 1, bound)))) mark(j);
  }
  mark(places);
  std::int64_t begin = 0, base = 0;
  for (std::uint64_t word : last) {
    for (; word != 0; word &= word - 1) {
      const std::int64_t end = base + __builtin_ctzll(word) + 1;
      *runs = end - begin;
      runs += 2;
      begin = end;
    }
    base += 64;
  }
}

// Runs in turn: text, noise, text, noise ...
void draw_spans(const Rule& rule, std::uint64_t key, Scratch& scratch) {
  const std::int64_t length = std::max<std::int64_t>(rule.length, 2);
  scratch.runs.resize(static_cast<std::size_t>(2 * rule.spans));
  draw_lengths(rule.noise, rule.spans, derive(key, 1), scratch.last, scratch.runs.data() + 1);
  draw_lengths(length - rule.noise, rule.spans, derive(key, 2), scratch.last, scratch.runs.data());
}

// Each token by itself, but for the first, and for what would begin a run beyond the most.
void draw_independent(const Rule& rule, std::uint64_t key, Scratch& scratch) {
  scratch.runs.assign(1, 1);
  const std::uint64_t own = derive(key, 1);
  for (std::int64_t i = 1; i < rule.length; ++i) {
    const bool inside = scratch.runs.size() % 2 == 0;
    const bool full = !inside && static_cast<std::int64_t>(scratch.runs.size() / 2) >= rule.spans;
    const bool hidden = !full && static_cast<std::int64_t>(draw(own, static_cast<std::uint64_t>(i)) >> 11) < rule.threshold;
    if (hidden != inside) scratch.runs.push_back(0);
    ++scratch.runs.back();
  }
}

// Text goes to the inputs and noise to the targets, and a sentinel stands for each run on the other side.
void write_runs(const Rule& rule, const Special& special, const std::int64_t* tokens, const Scratch& scratch,
                Cursor& inputs_out, Cursor& targets_out) {
  Cursor inputs = inputs_out, targets = targets_out;  // nearer than behind references
  std::int64_t place = 0, sentinel = special.first_sentinel;
  for (std::size_t run = 0; run < scratch.runs.size() && place < rule.length; run += 2) {
    const std::int64_t text = std::min(scratch.runs[run], rule.length - place);
    inputs.copy(tokens + place, text);
    targets.put(sentinel);
    place += text;
    if (run + 1 >= scratch.runs.size() || place >= rule.length) break;
    const std::int64_t noise = std::min(scratch.runs[run + 1], rule.length - place);
    targets.copy(tokens + place, noise);
    inputs.put(sentinel--);
    place += noise;
  }
  inputs_out = inputs;
  targets_out = targets;
}

void write_prefix(const Rule& rule, const std::int64_t* tokens, std::uint64_t key, Cursor& inputs, Cursor& targets) {
  const auto most = static_cast<std::uint64_t>(rule.noise);
  const auto behind = static_cast<std::int64_t>(bounded(derive(key, 1), 0, most)) + 1;
  inputs.copy(tokens, rule.length - behind);
  targets.copy(tokens + rule.length - behind, behind);
}

}  // namespace

bool is_possible(const Rule& rule) {
  constexpr std::int64_t kMost = std::int64_t{1} << 24;  // far above any model, far below what memory holds
  if (rule.length < 1 || rule.length > kMost) return false;
  switch (rule.kind) {
    case Kind::spans: {
      const std::int64_t length = std::max<std::int64_t>(rule.length, 2);
      return rule.spans > 0 && rule.noise >= rule.spans && rule.noise < length && rule.spans <= length - rule.noise;
    }
    case Kind::independent: return rule.spans > 0;
    case Kind::prefix: return rule.noise > 0 && rule.noise < rule.length;
  }
  return false;
}

void denoise(const Rule& rule, const Special& special, const std::int64_t* tokens, std::uint64_t key, Scratch& scratch,
             Cursor& inputs, Cursor& targets) {
  if (rule.mode >= 0) inputs.put(rule.mode);
  if (rule.kind == Kind::prefix) {
    write_prefix(rule, tokens, key, inputs, targets);
  } else {
    if (rule.kind == Kind::spans) {
      draw_spans(rule, key, scratch);
    } else {
      draw_independent(rule, key, scratch);
    }
    write_runs(rule, special, tokens, scratch, inputs, targets);
  }
  inputs.close(special.eos);
  targets.close(special.eos);
}

}  // namespace megaswitch
