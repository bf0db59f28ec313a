// Token ids of a memory-mapped .bin, of any of the format's widths.
#pragma once

#include <cstdint>
#include <stdexcept>

namespace megaswitch {

enum class Width { u8, i8, u16, i16, i32, i64 };

struct Tokens {
  const void* data;
  std::int64_t count;
  Width width;
};

// The file ended before its map did.
struct Shrunk : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Makes a read beyond the end of a mapped file an exception (Shrunk, from read_ids) where it would end the process by SIGBUS. Cheap;
// called before each batch, since others may have set a handler of their own meanwhile. Faults elsewhere go to that handler.
void guard_maps();

struct Extremes {
  std::int64_t lowest, highest;
};

// Copies ids first .. first + count - 1, widened, and says between what they lie (0 and 0 where there are none);
// std::out_of_range where they are not all inside, Shrunk where the file is shorter by now.
Extremes read_ids(const Tokens& tokens, std::int64_t first, std::int64_t count, std::int64_t* out);

}  // namespace megaswitch
