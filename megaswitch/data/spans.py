"""Span corruption's rules: how long pieces are, how much of them is masked, in which spans, and the sentinels that
stand for them (Raffel et al. 2020, section 3.1.4).

The rules that involve rounding are here alone; the compiled twin receives counts.

Shape suffixes: L raw tokens of a piece, M noise or non-noise tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from megaswitch.data.rng import bounded
from megaswitch.utils.errors import UserError

Int64s = NDArray[np.int64]
Bools = NDArray[np.bool_]

EOS = 1
NUM_SENTINELS = 100


def random_spans_helper(encoder_length: int, density: float = 0.15, mean_span: float = 3.0) -> tuple[int, int]:
    """(raw length, target length): the most tokens whose corrupted form fills `encoder_length`, EOS included on both
    sides.

    T5's `random_spans_helper`; Python doubles and half-to-even rounding, so that 512 gives (568, 114).
    Raises UserError where no piece that holds a span fits.
    """
    if not (0 < density < 1 and mean_span >= 1):
        raise UserError(
            f"data.noise_density must lie between 0 and 1 and data.mean_span_length be 1 or more, got {density} and "
            f"{mean_span}"
        )

    def lengths(raw: int) -> tuple[int, int]:
        noise = round(raw * density)
        spans = round(noise / mean_span)
        return raw - noise + spans + 1, noise + spans + 1

    raw = 1
    while lengths(raw + 1)[0] <= encoder_length:
        raw += 1
    if round(round(raw * density) / mean_span) < 1:  # the mask has a span at least, for which there would be no room
        raise UserError(f"an encoder length of {encoder_length} is too short to mask a span: lengthen the encoder")
    return raw, lengths(raw)[1]


def noise_counts(length: int, density: float = 0.15, mean_span: float = 3.0) -> tuple[int, int]:
    """(noise tokens, noise spans) of a piece of `length` tokens; a length of 1 counts as 2.

    float32 throughout, as T5's mask is computed; the helper's doubles differ from it at some lengths (190, 350, ...).
    """
    length = max(length, 2)
    noise = int(np.rint(np.float32(length) * np.float32(density)))
    noise = min(max(noise, 1), length - 1)
    spans = max(int(np.rint(np.float32(noise) / np.float32(mean_span))), 1)
    return noise, spans


def draw_indicators(items: int, segments: int, key: int) -> Int64s:
    """First-of-segment indicators, int64 of shape M: `segments - 1` ones anywhere behind a leading zero, every choice
    alike (Floyd's sampling without repetition; draw j is below j + 1)."""
    first_M = np.zeros(items, np.int64)
    places = np.arange(items - segments, items - 1, dtype=np.uint64)
    drawn = bounded(key, places, places + np.uint64(1)).tolist()
    for last, place in zip(places.tolist(), drawn, strict=True):
        first_M[last + 1 if first_M[place + 1] else place + 1] = 1
    return first_M


def mask_from_indicators(first_noise_M: Int64s, first_other_M: Int64s, length: int) -> Bools:
    """The noise mask, bool of shape L: segments in turn, non-noise first, so that the piece ends with noise."""
    noise_lengths = np.bincount(np.cumsum(first_noise_M))
    other_lengths = np.bincount(np.cumsum(first_other_M))
    lengths = np.stack([other_lengths, noise_lengths], axis=1).reshape(-1)
    return np.repeat(np.arange(lengths.size) % 2 == 1, lengths)[:length]


def replace_runs(tokens_L: Int64s, mask_L: Bools, first_sentinel: int) -> Int64s:
    """Tokens with each masked run replaced by one sentinel, counting down from `first_sentinel`, and EOS behind.

    With the mask this gives the encoder's inputs, with the inverted mask the decoder's targets.
    """
    before_L = np.concatenate([[False], mask_L[:-1]])
    first_L = mask_L & ~before_L
    replaced_L = np.where(first_L, first_sentinel + 1 - np.cumsum(first_L), tokens_L)
    return np.append(replaced_L[~(mask_L & before_L)], EOS).astype(np.int64)
