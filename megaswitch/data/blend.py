"""Blends of corpora: which corpus, and which of its samples, a global sample index means.

The rule is Tijdeman's for the chairman assignment problem (Discrete Mathematics 32, 1980, 323-330): after every prefix
each corpus has its exact share of the samples to within less than one. It is sequential but periodic (the period is the
sum of the integer weights) and its state is two integers a corpus, so states are kept at block borders and only blocks
in use are unrolled. A sample costs the time of a heap's operation: deadlines move by exact steps.

Shape suffixes: K corpora, N samples.
"""

from __future__ import annotations

import math
from fractions import Fraction
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from megaswitch.data.native import native
from megaswitch.utils.errors import UserError

Int64s = NDArray[np.int64]
Int32s = NDArray[np.int32]

_LARGEST_TOTAL = 1 << 53  # beyond this the compiled rule's 128-bit products could overflow
_MOST_CORPORA = 1 << 16
_BLOCK = 1 << 16
_KEPT_BLOCKS = 4


def integer_weights(weights: list[Fraction]) -> list[int]:
    """The smallest integers in the same proportion; UserError where they need more than 53 bits."""
    scale = math.lcm(*(weight.denominator for weight in weights))
    integers = [int(weight * scale) for weight in weights]
    common = math.gcd(*integers)
    integers = [integer // common for integer in integers]
    if sum(integers) > _LARGEST_TOTAL:
        raise UserError("the weights of the blend have too many digits: write them with fewer (six are plenty)")
    return integers


def fill_numpy(weights_K: Int64s, owed_K: Int64s, taken_K: Int64s, corpus_N: Int32s, within_N: Int64s) -> None:
    """The oracle and fallback of the compiled `blend_fill`: continues the schedule, updating `owed_K` (W t - D x) and
    `taken_K` (x).

    Of the corpora that are owed at least D / (2K - 2), the one that must be taken first: by the last whole step up
    to which it would not be owed more than D - D / (2K - 2). Ties go to the lower number.
    """
    weights, owed, taken = weights_K.tolist(), owed_K.tolist(), taken_K.tolist()
    total, scale = sum(weights), 2 * len(weights) - 2
    for n in range(corpus_N.size):
        owed = [o + w for o, w in zip(owed, weights, strict=True)]
        chosen = 0
        if scale:
            due = [k for k, o in enumerate(owed) if o * scale >= total]
            chosen = min(due, key=lambda k: (total * (scale - 1) - owed[k] * scale) // (scale * weights[k]))
        owed[chosen] -= total
        corpus_N[n], within_N[n] = chosen, taken[chosen]
        taken[chosen] += 1
    owed_K[:], taken_K[:] = owed, taken


def fill(weights_K: Int64s, owed_K: Int64s, taken_K: Int64s, corpus_N: Int32s, within_N: Int64s) -> None:
    """Continues the schedule in place; see `fill_numpy`."""
    compiled = native()
    (fill_numpy if compiled is None else compiled.blend_fill)(weights_K, owed_K, taken_K, corpus_N, within_N)


class Blend:
    """Random access to the schedule of one blend. Safe to share by threads."""

    def __init__(self, weights: list[int]) -> None:
        """Positive integer weights, one a corpus."""
        assert 0 < len(weights) <= _MOST_CORPORA and min(weights) > 0, "a blend has corpora, and each a weight"
        self._weights_K = np.array(weights, np.int64)
        self._period = sum(weights)
        zeros = np.zeros(len(weights), np.int64)
        self._states: list[tuple[Int64s, Int64s]] = [(zeros, zeros)]  # at the start of block 0, 1, ...
        self._blocks: dict[int, tuple[Int32s, Int64s]] = {}
        self._lock = Lock()

    def locate(self, first: int, count: int) -> tuple[Int32s, Int64s]:
        """Corpus (int32) and sample within the corpus (int64) of samples first .. first + count - 1, both of shape N.

        A first visit far ahead walks there once, some hundred million samples in a second or so; then it is a lookup.
        """
        corpus_N, within_N = np.empty(count, np.int32), np.empty(count, np.int64)
        done = 0
        while done < count:
            cycle, rest = divmod(first + done, self._period)
            number, offset = divmod(rest, _BLOCK)
            corpus, within = self._block(number)
            take = min(count - done, corpus.size - offset)
            chosen = corpus[offset : offset + take]
            corpus_N[done : done + take] = chosen
            within_N[done : done + take] = within[offset : offset + take] + cycle * self._weights_K[chosen]
            done += take
        return corpus_N, within_N

    def _block(self, number: int) -> tuple[Int32s, Int64s]:
        with self._lock:
            if number in self._blocks:
                return self._blocks[number]
            for earlier in range(len(self._states) - 1, number):
                self._unroll(earlier)
            block = self._unroll(number)
            while len(self._blocks) >= _KEPT_BLOCKS:
                del self._blocks[next(iter(self._blocks))]
            self._blocks[number] = block
            return block

    def _unroll(self, number: int) -> tuple[Int32s, Int64s]:
        """Fills block `number`, whose starting state is known, and learns the state of the next."""
        owed_K, taken_K = (state.copy() for state in self._states[number])
        size = min(_BLOCK, self._period - number * _BLOCK)
        corpus_N, within_N = np.empty(size, np.int32), np.empty(size, np.int64)
        fill(self._weights_K, owed_K, taken_K, corpus_N, within_N)
        if number + 1 == len(self._states):
            self._states.append((owed_K, taken_K))
        return corpus_N, within_N
