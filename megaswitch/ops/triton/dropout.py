"""Dropout and jitter by the stateless generator: the kernels of `ops/fused/dropout.py` for the GPU.

A number is read and written (4 bytes in bfloat16, 1.2 ns for a thousand at 3.35 TB/s) for two mixes of 32-bit integers,
some 25 operations (1.7 ns for a thousand at 132 x 64 a clock): arithmetic bounds it by a little, so a number's place is
never divided into row and feature. Tiles are 16 rows of 256 features: 8 KB under way in a program of 4 warps, of which
a dozen are resident.

N rows, F features.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megaswitch.ops.triton.random import drawn, factors, threshold
from megaswitch.ops.triton.tune import wide

_TILE = {"ROWS": 16, "COLS": 256}


@triton.jit
def _places(N, F, ROWS: tl.constexpr, COLS: tl.constexpr):
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    f = tl.program_id(1) * COLS + tl.arange(0, COLS)
    return n, f, (n < N)[:, None] & (f < F)[None, :]


@triton.jit
def _dropout(
    x, states, out, N, F, first, threshold: tl.constexpr, scale: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    n, f, inside = _places(N, F, ROWS, COLS)
    at = n[:, None] * F + f[None, :]
    value = tl.load(x + at, mask=inside, other=0.0)
    kept = (drawn(states, n, N, f.to(tl.int64) + first) >= threshold).to(WIDE)
    tl.store(out + at, (value.to(WIDE) * kept * scale).to(value.dtype), mask=inside)


@triton.jit
def _jitter(x, states, out, N, F, size: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    n, f, inside = _places(N, F, ROWS, COLS)
    at = n[:, None] * F + f[None, :]
    value = tl.load(x + at, mask=inside, other=0.0)
    factor = factors(states, n, N, f.to(tl.int64), size, WIDE).to(value.dtype)
    tl.store(out + at, (value.to(WIDE) * factor.to(WIDE)).to(value.dtype), mask=inside)


@triton.jit
def _uniform(states, out, N, F, first, ROWS: tl.constexpr, COLS: tl.constexpr):
    n, f, inside = _places(N, F, ROWS, COLS)
    numbers = drawn(states, n, N, f.to(tl.int64) + first).to(tl.float32) * 5.9604644775390625e-08  # 2^-24
    tl.store(out + n[:, None] * F + f[None, :], numbers, mask=inside)


def _grid(rows: int, width: int) -> tuple[int, int]:
    return triton.cdiv(rows, _TILE["ROWS"]), triton.cdiv(width, _TILE["COLS"])


def dropout(x: Tensor, states: Tensor, rate: float, first_feature: int) -> Tensor:
    """See `ops/fused/dropout.py`."""
    x, (rows, width) = x.contiguous(), x.shape
    out = torch.empty_like(x)
    if out.numel():
        numbers = (rows, width, first_feature, threshold(rate), 1.0 / (1.0 - rate), wide(x.dtype))
        _dropout[_grid(rows, width)](x, states.contiguous(), out, *numbers, **_TILE)
    return out


def jitter(x: Tensor, states: Tensor, size: float) -> Tensor:
    """See `ops/fused/dropout.py`."""
    x, (rows, width) = x.contiguous(), x.shape
    out = torch.empty_like(x)
    if out.numel():
        _jitter[_grid(rows, width)](x, states.contiguous(), out, rows, width, size, wide(x.dtype), **_TILE)
    return out


def features_uniform(states: Tensor, first_feature: int, width: int) -> Tensor:
    """See `ops/fused/dropout.py`."""
    rows = len(states)
    out = torch.empty(rows, width, dtype=torch.float32, device=states.device)
    if out.numel():
        _uniform[_grid(rows, width)](states.contiguous(), out, rows, width, first_feature, **_TILE)
    return out
