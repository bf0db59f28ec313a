#include "spans.h"

#include <algorithm>

#include "rng.h"

namespace megaswitch {
namespace {

// first[i] = 1 where item i begins a segment other than the first: `segments - 1` ones among items 1 .. items - 1, shuffled.
void draw_indicators(std::int64_t items, std::int64_t segments, std::uint64_t key, std::vector<std::uint8_t>& first) {
  first.assign(static_cast<std::size_t>(items), 0);
  std::fill_n(first.begin() + 1, segments - 1, std::uint8_t{1});
  shuffle(first.data() + 1, items - 1, key);
}

// Copies one segment's worth of `value` into the mask and moves both cursors to the segment's end.
void lay_segment(const std::vector<std::uint8_t>& first, std::uint8_t value, std::size_t& item, std::size_t& place,
                 std::vector<std::uint8_t>& mask) {
  do {
    mask[place++] = value;
    ++item;
  } while (item < first.size() && first[item] == 0);
}

}  // namespace

void draw_mask(const SpanRule& rule, std::uint64_t key, SpanScratch& scratch) {
  const std::int64_t length = std::max<std::int64_t>(rule.length, 2);
  draw_indicators(rule.noise, rule.spans, derive(key, 1), scratch.first_noise);
  draw_indicators(length - rule.noise, rule.spans, derive(key, 2), scratch.first_other);
  scratch.mask.resize(static_cast<std::size_t>(length));
  std::size_t noise = 0, other = 0, place = 0;
  for (std::int64_t span = 0; span < rule.spans; ++span) {
    lay_segment(scratch.first_other, 0, other, place, scratch.mask);
    lay_segment(scratch.first_noise, 1, noise, place, scratch.mask);
  }
  scratch.mask.resize(static_cast<std::size_t>(rule.length));
}

void replace_runs(const SpanRule& rule, const std::int64_t* tokens, const std::vector<std::uint8_t>& mask,
                  std::uint8_t masked, std::int64_t* out, std::int64_t room) {
  std::int64_t filled = 0;
  std::int64_t sentinel = rule.first_sentinel;
  bool inside = false;
  for (std::int64_t i = 0; i < rule.length && filled < room - 1; ++i) {
    const bool hidden = mask[static_cast<std::size_t>(i)] == masked;
    if (!hidden) {
      out[filled++] = tokens[i];
    } else if (!inside) {
      out[filled++] = sentinel--;
    }
    inside = hidden;
  }
  out[filled++] = rule.eos;
  std::fill(out + filled, out + room, 0);
}

}  // namespace megaswitch
