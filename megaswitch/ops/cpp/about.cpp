// What this library was built for, asked before anything else of it is called.
#include "common.h"

namespace megaswitch {
namespace {

// Raised with every change of a kernel's signature, so that a library left from an older build is not called.
constexpr int64_t kVersion = 13;

int64_t version() { return kVersion; }

std::string capability() { return MEGASWITCH_CAPABILITY; }

}  // namespace

TORCH_LIBRARY_FRAGMENT(megaswitch_cpp, m) {
  m.def("version() -> int", version);
  m.def("capability() -> str", capability);
}

}  // namespace megaswitch
