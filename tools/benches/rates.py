"""What the machine can do: the rates of a matrix product and of a copy, measured as everything else is."""

from dataclasses import dataclass

import torch

from benches.timing import Taken, repeated

_SIDES = (1024, 1536, 2048)
_COPIED = 1 << 26  # elements of float32: far more than any cache holds
_LEAST = 0.5  # seconds a measurement


@dataclass(frozen=True)
class Rates:
    """`flops`: FLOP/s of the best square product in the type of the step; `wide`: in float32; `bytes`: bytes read and
    written a second by a copy between arrays that no cache holds."""

    flops: float
    wide: float
    bytes: float


def measure_rates(dtype: torch.dtype, threads: int, *, quick: bool = False) -> Rates:
    """The best of several calls each."""
    sides = (128,) if quick else _SIDES
    wide = _products(torch.float32, sides, threads)
    flops = wide if dtype == torch.float32 else _products(dtype, sides, threads)
    return Rates(flops, wide, _copies(1 << 16 if quick else _COPIED, threads))


def _best(work: object, threads: int) -> float:
    assert callable(work)

    def clock(taken: Taken) -> float:
        return taken.seconds(threads)

    return min(repeated(work, _LEAST, clock))


def _products(dtype: torch.dtype, sides: tuple[int, ...], threads: int) -> float:
    rates = []
    for side in sides:
        a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        rates.append(2.0 * side**3 / _best(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), threads))
    return max(rates)


def _copies(elements: int, threads: int) -> float:
    source, target = torch.ones(elements), torch.zeros(elements)
    return 2.0 * 4 * elements / _best(lambda: target.copy_(source), threads)
