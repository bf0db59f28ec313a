"""How the C library gives memory to large arrays on a CPU."""

import ctypes
import os

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # names of glibc's `mallopt`
_PAD = 64 * 2**20


def keep_freed_memory() -> bool:
    """Have glibc keep what arrays leave behind for the next ones; whether it does.

    By itself it gives large arrays back at once, and the system clears their pages anew at the next allocation, every
    step: that is up to a tenth of a step in bfloat16. Settings of the environment (MALLOC_..., GLIBC_TUNABLES)
    are left alone, and other C libraries have nothing to set.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    return all([mallopt(_TRIM_THRESHOLD, -1), mallopt(_MMAP_MAX, 0), mallopt(_TOP_PAD, _PAD)])
