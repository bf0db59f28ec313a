"""Counter-based random numbers: a pure function of a key and of integer counters, with no generator state.

The same (key, sample, position, feature) gives the same number on every layout, under recomputation and after
a resume. Each counter is folded into a 32-bit state by a multiplicative hash (the finaliser of MurmurHash3
over a Weyl sequence), in 64-bit integers of which the low 32 bits are kept.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", int, Tensor)

_MASK = 0xFFFFFFFF
_WEYL = 0x9E3779B9
OPEN_INTERVAL = (2.0**-25, 1.0 - 2.0**-24)
"""Bounds for numbers that must be neither 0 nor 1, as float32 holds them: the largest one drawn is the upper."""


def _mix(h: Number) -> Number:
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & _MASK
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & _MASK
    return h ^ (h >> 16)


def _fold(state: Number, counter: Number) -> Number:
    low, high = counter & _MASK, counter >> 32
    folded = _mix((state + low * _WEYL) & _MASK)
    return _mix((folded + high * _WEYL + 1) & _MASK)


def fold(state: Tensor, counter_N: Tensor) -> Tensor:
    """States [..., N] from states [...] and a counter of N int64 numbers (at most 2^62)."""
    return _fold(state.unsqueeze(-1), counter_N)


def start(key: int, device: torch.device) -> Tensor:
    """The state of a 63-bit key, a scalar. The host computes it and the device fills it in: the host would wait for a
    copy."""
    return torch.full((), _fold(_mix(key & _MASK), key >> 32), dtype=torch.int64, device=device)


def states(start: Tensor, counters: Sequence[Tensor]) -> Tensor:
    """States from that of a key, one dimension a counter: of counters a_A and b_B they have shape [A, B]."""
    for counter in counters:
        start = fold(start, counter)
    return start


def to_uniform(state: Tensor) -> Tensor:
    """States as float32 numbers in [0, 1), multiples of 2^-24, which every wider type holds exactly."""
    return (state >> 8).to(torch.float32) * 2.0**-24


def drop(x: Tensor, rate: float, uniform: Tensor) -> Tensor:
    """Dropout of `x` where `uniform` is below `rate`; the rest is scaled by 1 / (1 - rate)."""
    return x * (uniform >= rate).to(x.dtype) * (1.0 / (1.0 - rate))


def uniform(key: int, *counters: Tensor) -> Tensor:
    """Numbers in [0, 1), one dimension a counter: uniform(key, a_A, b_B) has shape [A, B]."""
    return to_uniform(states(start(key, counters[0].device), counters))
