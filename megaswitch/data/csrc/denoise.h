// Makes encoder inputs and targets of a piece of text; the numpy twin with the reasons is megaswitch/data/denoise.py. Both must give the
// same bits.
#pragma once

#include <cstdint>
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

// A stretch of a row that is being filled; what does not fit is dropped, and the last place is EOS's.
class Cursor {
 public:
  Cursor(std::int64_t* out, std::int64_t room) : out_(out), room_(room) {}
  void put(std::int64_t id);
  void copy(const std::int64_t* ids, std::int64_t count);
  void close(std::int64_t eos);
  std::int64_t filled() const { return filled_; }

 private:
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

// Writes both sides of one piece of rule.length tokens, EOS included.
void denoise(const Rule& rule, const Special& special, const std::int64_t* tokens, std::uint64_t key, Scratch& scratch,
             Cursor& inputs, Cursor& targets);

}  // namespace megaswitch
