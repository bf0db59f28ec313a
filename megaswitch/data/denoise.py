"""What a piece of text becomes: encoder inputs and targets by one of three kinds of denoising. The numpy function is
the oracle and the fallback of `csrc/denoise.cpp`.

Shape suffixes: L raw tokens of a piece, R rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from megaswitch.data import spans
from megaswitch.data.rng import bounded, derive_next, draw
from megaswitch.data.spans import EOS

Int64s = NDArray[np.int64]
Bools = NDArray[np.bool_]

_FIRST, _SECOND = 1, 2  # purposes of a sample's key; csrc/denoise.cpp says the same


class Kind(IntEnum):
    """Which tokens the decoder gets: spans of drawn lengths, tokens each by itself, or all behind a drawn place."""

    SPANS = 0
    INDEPENDENT = 1
    PREFIX = 2


@dataclass(frozen=True)
class Rule:
    """One way to treat a piece of `length` tokens. `noise`: tokens masked (SPANS), or the most that the decoder
    gets (PREFIX). `spans`: runs of masked tokens (SPANS), or the most of them (INDEPENDENT). `mode`: an id in front
    of the inputs, or -1. `threshold`: a token is masked where 53 bits drawn for it are below this (INDEPENDENT)."""

    kind: Kind
    length: int
    noise: int = 0
    spans: int = 0
    mode: int = -1
    threshold: int = 0

    def numbers(self) -> list[int]:
        """The rule as the compiled twin reads it."""
        return [self.kind, self.length, self.noise, self.spans, self.mode, self.threshold]


def table(rules: list[Rule]) -> Int64s:
    """Rules for the compiled twin, int64 of shape (R, 6)."""
    return np.array([rule.numbers() for rule in rules], np.int64).reshape(-1, 6)


def denoise_numpy(rule: Rule, tokens_L: Int64s, key: int, first_sentinel: int) -> tuple[Int64s, Int64s]:
    """Encoder inputs and targets of one piece, EOS behind both, neither cut nor padded."""
    if rule.kind == Kind.PREFIX:
        most = np.array([rule.noise], np.uint64)
        behind = int(bounded(derive_next(key, _FIRST), np.zeros(1, np.uint64), most)[0]) + 1
        inputs, targets = np.append(tokens_L[:-behind], EOS), np.append(tokens_L[-behind:], EOS)
    else:
        mask_L = _spans_mask(rule, key) if rule.kind == Kind.SPANS else _independent_mask(rule, key)
        inputs = spans.replace_runs(tokens_L, mask_L, first_sentinel)
        targets = spans.replace_runs(tokens_L, ~mask_L, first_sentinel)
    front = [rule.mode] if rule.mode >= 0 else []
    return np.concatenate([np.array(front, np.int64), inputs]), targets


def cut(ids: Int64s, room: int) -> Int64s:
    """The ids where they fit, else as many as leave the last place to EOS: where the helper's rounding and the mask's
    differ, text is cut as in T5."""
    return ids if ids.size <= room else np.append(ids[: room - 1], EOS)


def _spans_mask(rule: Rule, key: int) -> Bools:
    first_noise_M = spans.draw_indicators(rule.noise, rule.spans, derive_next(key, _FIRST))
    first_other_M = spans.draw_indicators(max(rule.length, 2) - rule.noise, rule.spans, derive_next(key, _SECOND))
    return spans.mask_from_indicators(first_noise_M, first_other_M, rule.length)


def _independent_mask(rule: Rule, key: int) -> Bools:
    """Each token by itself, but for the first (so that a sentinel stands before its tokens on both sides), and for what
    would begin a run beyond the most."""
    drawn_L = draw(derive_next(key, _FIRST), np.arange(rule.length, dtype=np.uint64)) >> np.uint64(11)
    wanted, mask, runs = (drawn_L < np.uint64(rule.threshold)).tolist(), [False], 0
    for want in wanted[1:]:
        begins = want and not mask[-1]
        mask.append(want and not (begins and runs >= rule.spans))
        runs += begins and mask[-1]
    return np.array(mask)
