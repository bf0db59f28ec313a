"""Loads the compiled kernels, or says why there are none."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

from megaswitch.ops.fused.kernels import KERNELS
from megaswitch.ops.library import CPP, library
from megaswitch.ops.unavailable import Unavailable

VERSION = 13
"""That of the kernels' signatures: `about.cpp` has the same."""
_BUILD = "build it with `pip install -e . --no-build-isolation`, or take ops.backend=reference"


@cache
def cpp_kernels() -> Any:
    """The operators; Unavailable where they are not built, of another version, or for another processor."""
    found = sorted(Path(__file__).parent.glob("_kernels*.so"))
    if not found:
        raise Unavailable(f"the C++ kernels are not built: {_BUILD}")
    kernels = library(CPP, KERNELS)
    try:
        torch.ops.load_library(str(found[-1]))  # type: ignore[no-untyped-call]
    except OSError as error:
        raise Unavailable(f"the C++ kernels do not load ({error}): {_BUILD}") from None
    if kernels.version() != VERSION:
        raise Unavailable(f"the C++ kernels are of version {kernels.version()}, this code wants {VERSION}: {_BUILD}")
    wanted, here = kernels.capability(), torch.backends.cpu.get_cpu_capability()
    if wanted != here:
        raise Unavailable(f"the C++ kernels were built for {wanted}, this processor has {here}: {_BUILD}")
    return kernels
