"""Only operations that give the same bits each time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside, an operation that has no such form is an error of torch's; nothing changes unless `wanted`."""
    if not wanted:
        yield
        return
    # cuBLAS reads this when it is first used; without it products of two streams may be added in either order
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
