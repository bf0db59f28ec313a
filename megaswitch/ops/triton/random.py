"""The stateless generator of `ops/reference/random.py` in 32 bits, for kernels that draw its numbers as they go."""

import torch
import triton
import triton.language as tl

WEYL = tl.constexpr(0x9E3779B9)


@triton.jit
def mix(h):
    h = (h ^ (h >> 16)) * 0x85EBCA6B
    h = (h ^ (h >> 13)) * 0xC2B2AE35
    return h ^ (h >> 16)


@triton.jit
def fold(state, counter):
    """The state (uint32) with a counter (int64) folded in."""
    folded = mix(state + counter.to(tl.uint32) * WEYL)
    return mix(folded + (counter >> 32).to(tl.uint32) * WEYL + 1)


@triton.jit
def drawn(states, n, N, counter):
    """24 random bits of the states of rows n of N and of counters (int64): [n, counter]."""
    state = tl.load(states + n, mask=n < N, other=0).to(tl.uint32)
    return fold(state[:, None], counter[None, :]) >> 8


@triton.jit
def factors(states, n, N, counter, size: tl.constexpr, WIDE: tl.constexpr):
    """Numbers from 1 - size to 1 + size likewise."""
    number = drawn(states, n, N, counter).to(WIDE) * 5.9604644775390625e-08  # 2^-24
    return 1.0 + size * (2.0 * number - 1.0)


def threshold(rate: float) -> int:
    """The least such bits that dropout lets through: numbers are multiples of 2^-24, compared in float32."""
    return int(torch.tensor(rate, dtype=torch.float32).mul(2.0**24).ceil())
