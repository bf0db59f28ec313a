// Makes encoder inputs and targets of a piece of text; the numpy twin with the reasons is megaswitch/data/denoise.py. Both must give the
// same bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace megaswitch {

enum class Kind : std::int64_t { spans = 0, independent = 1, prefix = 2 };

// How one piece is treated. What involves rounding was decided in Python.
struct Rule {
  Kind kind;
  std::int64_t length;     // tokens of a piece
  std::int64_t noise;      // spans: tokens masked; prefix: most tokens that the decoder gets
  std::int64_t spans;      // spans: in so many runs; independent: most runs
  std::int64_t mode;       // id in front of the inputs, or -1
  std::int64_t threshold;  // independent: a token is masked where 53 bits of its draw are below this
};

struct Special {
  std::int64_t first_sentinel;  // the next ones count down
  std::int64_t eos;
};

constexpr std::int64_t kStride = 8;  // ids that are copied at once: what is copied from must have as many behind its end

// A stretch of a row that is being filled, to its end; what does not fit is dropped, and the last place is EOS's. What lies behind
// `filled` is open: it is written next, or padded.
class Cursor {
 public:
  Cursor(std::int64_t* out, std::int64_t room) : out_(out), room_(room) {}

  void put(std::int64_t id) {
    if (filled_ < room_ - 1) out_[filled_++] = id;
  }

  // Runs are short: whole strides cost less than a call that looks at the length.
  void copy(const std::int64_t* ids, std::int64_t count) {
    if (filled_ + count + kStride > room_) return copy_rest(ids, count);
    std::int64_t* to = out_ + filled_;
    for (std::int64_t i = 0; i < count; i += kStride) std::memcpy(to + i, ids + i, kStride * sizeof *ids);
    filled_ += count;
  }

  void close(std::int64_t eos) {
    if (filled_ < room_) out_[filled_++] = eos;
  }

  std::int64_t filled() const { return filled_; }

 private:
  void copy_rest(const std::int64_t* ids, std::int64_t count) {
    count = std::min(count, room_ - 1 - filled_);
    if (count <= 0) return;
    std::copy_n(ids, count, out_ + filled_);
    filled_ += count;
  }

  std::int64_t* out_;
  std::int64_t room_, filled_ = 0;
};

// Room that one thread needs, so that nothing is allocated for each sample.
struct Scratch {
  std::vector<std::int64_t> raw, runs;
  std::vector<std::uint64_t> last;
};

// Whether a rule's numbers fit together, whatever they are.
bool is_possible(const Rule& rule);

// Writes both sides of one piece of rule.length tokens (and kStride open ones behind them), EOS included.
void denoise(const Rule& rule, const Special& special, const std::int64_t* tokens, std::uint64_t key, Scratch& scratch,
             Cursor& inputs, Cursor& targets);

}  // namespace megaswitch
