"""Makes operators of the Triton kernels, or says why there are none."""

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

from megaswitch.ops.fused.kernels import KERNELS
from megaswitch.ops.library import TRITON, library
from megaswitch.ops.unavailable import Unavailable


@cache
def triton_kernels() -> Any:
    """The operators; Unavailable without Triton or without a GPU."""
    if find_spec("triton") is None:
        raise Unavailable("triton is not installed: `pip install triton`, or take ops.backend=reference")
    if not torch.cuda.is_available():
        raise Unavailable("torch finds no CUDA device here")
    from megaswitch.ops.triton.kernels import IMPLEMENTATIONS  # here: it imports Triton

    kernels = library(TRITON, KERNELS)
    for name, function in IMPLEMENTATIONS.items():
        torch.library.impl(f"{TRITON}::{name}", "CUDA", function)
    return kernels
