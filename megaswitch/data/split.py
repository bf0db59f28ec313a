"""Which documents belong to training, validation and test: a function of document number and weights, never of a seed.

Shape suffixes: N documents of one split.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from megaswitch.data.rng import derive, permutation
from megaswitch.utils.errors import UserError

SplitName = Literal["train", "valid", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")
_SPLIT_KEY = derive(
    0x73706C6974
)  # "split": fixed for ever, else validation documents would leak into training on resume


def parse_weight(text: str, key: str) -> Fraction:
    """A decimal weight, exactly; UserError naming `key` where it is no finite number of zero or more."""
    try:
        weight = Fraction(text.strip())
    except (ValueError, ZeroDivisionError):
        raise UserError(f"{key}: {text.strip()!r} is not a weight; write a number such as 0.3") from None
    if weight < 0:
        raise UserError(f"{key}: the weight {text.strip()} is negative; weights are 0 or more")
    return weight


def parse_split(text: str) -> tuple[Fraction, Fraction, Fraction]:
    """Weights of train, validation and test from `0.98,0.01,0.01`, normalised to sum 1."""
    parts = [parse_weight(part, "data.split") for part in text.split(",")]
    if len(parts) != len(SPLITS) or sum(parts) == 0:
        raise UserError(
            f"data.split is {text!r}; write three weights, of train, validation and test: 0.98,0.01,0.01"
        )
    total = sum(parts)
    train, valid, test = (part / total for part in parts)
    return train, valid, test


def split_counts(documents: int, weights: tuple[Fraction, ...]) -> list[int]:
    """Documents of each part: shares rounded at the cuts, and one from the largest part for any that rounding left
    without."""
    cuts = [round(documents * sum(weights[:i], Fraction(0))) for i in range(len(weights) + 1)]
    counts = [cuts[i + 1] - cuts[i] for i in range(len(weights))]
    for i, weight in enumerate(weights):
        largest = max(range(len(counts)), key=counts.__getitem__)
        if weight > 0 and counts[i] == 0 and counts[largest] > 1:
            counts[i] += 1
            counts[largest] -= 1
    return counts


def split_documents(documents: int, weights: tuple[Fraction, ...]) -> list[NDArray[np.int64]]:
    """For each part the numbers of its documents, int64 of shape N, ascending; every document is in exactly one
    part."""
    counts = split_counts(documents, weights)
    if documents in counts:  # nothing to divide
        return [np.arange(count, dtype=np.int64) for count in counts]
    order = permutation(documents, _SPLIT_KEY)
    part_of = np.empty(documents, np.uint8)
    part_of[order] = np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
    return [np.flatnonzero(part_of == part) for part in range(len(counts))]
