// Span corruption of a raw piece; the numpy twin with the reasons is megaswitch/data/spans.py. Both must give the same bits.
#pragma once

#include <cstdint>
#include <vector>

namespace megaswitch {

struct SpanRule {
  std::int64_t length;          // tokens in a raw piece
  std::int64_t noise;           // of these, masked
  std::int64_t spans;           // in so many spans
  std::int64_t first_sentinel;  // id of the first sentinel; the next ones count down
  std::int64_t eos;
};

// Room that one thread needs, so that nothing is allocated for each sample.
struct SpanScratch {
  std::vector<std::uint8_t> first_noise, first_other, mask;
};

// Fills scratch.mask (length, 1 = masked) from the sample's key.
void draw_mask(const SpanRule& rule, std::uint64_t key, SpanScratch& scratch);

// Replaces each run of `masked` tokens by one sentinel, cuts to room - 1, appends EOS, pads with 0 up to room.
void replace_runs(const SpanRule& rule, const std::int64_t* tokens, const std::vector<std::uint8_t>& mask,
                  std::uint8_t masked, std::int64_t* out, std::int64_t room);

}  // namespace megaswitch
