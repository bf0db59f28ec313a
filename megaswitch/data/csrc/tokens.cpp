#include "tokens.h"

#include <algorithm>
#include <csetjmp>
#include <csignal>
#include <mutex>

namespace megaswitch {
namespace {

thread_local sigjmp_buf* escape = nullptr;  // where this thread's guarded copy goes on after a fault
struct sigaction earlier {};

void on_fault(int number, siginfo_t* info, void* context) {
  if (escape != nullptr) siglongjmp(*escape, 1);
  if ((earlier.sa_flags & SA_SIGINFO) != 0) {
    earlier.sa_sigaction(number, info, context);
  } else if (earlier.sa_handler != SIG_DFL && earlier.sa_handler != SIG_IGN) {
    earlier.sa_handler(number);
  } else {
    signal(number, SIG_DFL);
    raise(number);  // ends the process as it would have
  }
}

template <typename T>
Extremes widen(const void* data, std::int64_t first, std::int64_t count, std::int64_t* out) {
  const T* ids = static_cast<const T*>(data) + first;
  T lowest = count > 0 ? ids[0] : T{0}, highest = lowest;
  for (std::int64_t i = 0; i < count; ++i) {
    out[i] = static_cast<std::int64_t>(ids[i]);
    lowest = std::min(lowest, ids[i]);
    highest = std::max(highest, ids[i]);
  }
  return {static_cast<std::int64_t>(lowest), static_cast<std::int64_t>(highest)};
}

Extremes widen_any(const Tokens& tokens, std::int64_t first, std::int64_t count, std::int64_t* out) {
  switch (tokens.width) {
    case Width::u8: return widen<std::uint8_t>(tokens.data, first, count, out);
    case Width::i8: return widen<std::int8_t>(tokens.data, first, count, out);
    case Width::u16: return widen<std::uint16_t>(tokens.data, first, count, out);
    case Width::i16: return widen<std::int16_t>(tokens.data, first, count, out);
    case Width::i32: return widen<std::int32_t>(tokens.data, first, count, out);
    case Width::i64: return widen<std::int64_t>(tokens.data, first, count, out);
  }
  return {0, 0};
}

// Nothing between sigsetjmp and the fault owns anything, so that the jump skips no destructor.
bool widen_guarded(const Tokens& tokens, std::int64_t first, std::int64_t count, std::int64_t* out, Extremes& found) {
  sigjmp_buf here;
  if (sigsetjmp(here, 0) != 0) {
    escape = nullptr;
    return false;
  }
  escape = &here;
  found = widen_any(tokens, first, count, out);
  escape = nullptr;
  return true;
}

}  // namespace

void guard_maps() {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  struct sigaction now {};
  sigaction(SIGBUS, nullptr, &now);
  if ((now.sa_flags & SA_SIGINFO) != 0 && now.sa_sigaction == on_fault) return;
  earlier = now;
  struct sigaction ours {};
  ours.sa_sigaction = on_fault;
  ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;  // the jump leaves the handler without returning
  sigaction(SIGBUS, &ours, nullptr);
}

Extremes read_ids(const Tokens& tokens, std::int64_t first, std::int64_t count, std::int64_t* out) {
  if (first < 0 || count < 0 || count > tokens.count || first > tokens.count - count) {
    throw std::out_of_range("a document lies outside the .bin");
  }
  Extremes found{0, 0};
  if (!widen_guarded(tokens, first, count, out, found)) throw Shrunk("a .bin was cut short while it was being read");
  return found;
}

}  // namespace megaswitch
