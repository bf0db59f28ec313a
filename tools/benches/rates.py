"""What the machine can do: the rates of a matrix product and of a copy, measured as everything else is."""

from dataclasses import dataclass
from functools import partial

import torch

from benches.timing import least

_SIDES = (1024, 1536, 2048)
_COPIED = 1 << 26  # elements of float32: far more than any cache holds
_LEAST = 0.5  # seconds a measurement


@dataclass(frozen=True)
class Rates:
    """`flops`: FLOP/s of the best square product in the type of the step, by `torch.mm` or by oneDNN, which `torch.mm`
    leaves aside in float32; `plain`: by `torch.mm` alone; `wide`: the best in float32; `bytes`: bytes read and
    written a second by a copy between arrays that no cache holds; `updated`: the same of numbers changed in place,
    whose memory need not be read before it is written."""

    flops: float
    plain: float
    wide: float
    bytes: float
    updated: float


def measure_rates(dtype: torch.dtype, threads: int, *, quick: bool = False) -> Rates:
    """The best of several calls each."""
    sides, seconds = ((128,), 0.01) if quick else (_SIDES, _LEAST)
    flops, plain = _products(dtype, sides, threads, seconds)
    wide = flops if dtype == torch.float32 else _products(torch.float32, sides, threads, seconds)[0]
    source, target = (torch.ones(1 << 16 if quick else _COPIED) for _ in range(2))
    moved = 2.0 * 4 * source.numel()
    copied, scaled = (least(work, threads, seconds) for work in (lambda: target.copy_(source), lambda: target.mul_(1)))
    return Rates(flops, plain, wide, moved / copied, moved / scaled)


def _products(dtype: torch.dtype, sides: tuple[int, ...], threads: int, seconds: float) -> tuple[float, float]:
    """FLOP/s of the best way, and of `torch.mm`."""
    plain, others = [], []
    for side in sides:
        a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
        work = 2.0 * side**3
        plain.append(work / least(partial(torch.mm, a, b, out=torch.empty_like(a)), threads, seconds))
        if torch.backends.mkldnn.is_available():
            linear = partial(torch.ops.mkldnn._linear_pointwise, a, b, None, "none", [], "")
            others.append(work / least(linear, threads, seconds))
    return max(plain + others), max(plain)
