"""Our own integer generator, so that the order of data never depends on a library: counter-based, SplitMix64's mixing
function.

A draw is a function of (key, counter) alone; there is no state. `csrc/rng.h` holds the same rules in C++ and must give
the same bits. Mixing function: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014), variant 13
of Stafford.

Shape suffixes: N draws.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from megaswitch.data.native import native

UInt64s = NDArray[np.uint64]

MASK = (1 << 64) - 1
STEP = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd
_STEP = np.uint64(STEP)


def mix(words_N: UInt64s) -> UInt64s:
    """SplitMix64's finaliser, a bijection of 64-bit words; array in, new array out."""
    z: UInt64s = words_N ^ (words_N >> np.uint64(30))
    z = z * np.uint64(0xBF58476D1CE4E5B9)
    z = z ^ (z >> np.uint64(27))
    z = z * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def derive(*words: int) -> int:
    """A 64-bit key from a path of integers (seed, purpose, index ...); order matters, negative words are taken modulo
    2^64."""
    key = 0
    for word in words:
        key = derive_next(key, word)
    return key


def derive_next(key: int, word: int) -> int:
    """`derive` one word further: derive(a, b) is derive_next(derive(a), b)."""
    return int(derive_each(key, np.array([word & MASK], np.uint64))[0])


def derive_each(key: int, words_N: UInt64s) -> UInt64s:
    """`derive` one word further, for many words at once: uint64 keys of shape N."""
    return mix(np.uint64(key) ^ mix(words_N + _STEP))


def draw(key: int, counters_N: UInt64s) -> UInt64s:
    """One uint64 for each counter, uniform over all 64-bit words."""
    return mix(np.uint64(key) + (counters_N + np.uint64(1)) * _STEP)


def bounded(key: int, counters_N: UInt64s, bounds_N: UInt64s) -> UInt64s:
    """For each counter an integer uniform over [0, bound), without bias; bounds are 1 or more.

    The remainder of a draw is kept unless the draw lies in the incomplete last multiple of the bound; then the draw is
    mixed again.
    """
    words_N = draw(key, counters_N)
    remainders_N = words_N % bounds_N
    limits_N = np.uint64(0) - bounds_N  # 2^64 - bound: the largest start of a whole multiple
    pending = np.flatnonzero(words_N - remainders_N > limits_N)
    while pending.size:
        words_N[pending] = mix(words_N[pending] + _STEP)
        remainders_N[pending] = words_N[pending] % bounds_N[pending]
        pending = pending[words_N[pending] - remainders_N[pending] > limits_N[pending]]
    return remainders_N


def shuffle_numpy(values: NDArray[np.int64], key: int) -> None:
    """Fisher-Yates in place, from the last place down; the partner of place i is draw i. The oracle of `shuffle`."""
    if values.size < 2:
        return
    places = np.arange(values.size - 1, 0, -1, dtype=np.uint64)
    partners = bounded(key, places, places + np.uint64(1)).tolist()
    items = values.tolist()
    for place, partner in zip(range(len(items) - 1, 0, -1), partners, strict=True):
        items[place], items[partner] = items[partner], items[place]
    values[:] = items


def shuffle(values: NDArray[np.int64], key: int) -> None:
    """Shuffles a contiguous int64 array in place; every order is equally likely over keys."""
    compiled = native()
    if compiled is None:
        shuffle_numpy(values, key)
    else:
        compiled.shuffle(values, key)


def permutation(count: int, key: int) -> NDArray[np.int64]:
    """The numbers 0 .. count-1 in the shuffled order of `key`, int64."""
    values = np.arange(count, dtype=np.int64)
    shuffle(values, key)
    return values
