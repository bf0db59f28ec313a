"""What kernels share: types to compute in, and configurations that a GPU is asked about."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl

WIDE = {torch.float64: tl.float64}


def wide(dtype: torch.dtype) -> Any:
    """The type to compute in: "float32 means at least float32"."""
    return WIDE.get(dtype, tl.float32)


def tuned(warps: Sequence[int], key: Sequence[str]) -> Callable[[Any], Any]:
    """Has the GPU say at the first call for each `key` how many warps serve best; the interpreter takes the first."""
    return fastest_of([triton.Config({}, num_warps=n) for n in warps], key)


def fastest_of(
    configs: Sequence[Any],
    key: Sequence[str],
    keep: Callable[..., list[Any]] | None = None,
    restored: Sequence[str] = (),
) -> Callable[[Any], Any]:
    """`tuned` among those of the configurations that `keep` leaves; arguments named in `restored` are changed in place
    and put back between."""
    asked = configs[:1] if triton.knobs.runtime.interpret else configs
    prune = {"early_config_prune": keep} if keep else None
    decorate: Callable[[Any], Any] = triton.autotune(
        list(asked), list(key), prune_configs_by=prune, restore_value=list(restored) or None
    )
    return decorate


def block(n: int, most: int, least: int = 16) -> int:
    """A tile's width for n numbers: a power of two."""
    return int(min(most, max(least, triton.next_power_of_2(n))))
