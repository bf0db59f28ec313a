"""Span corruption: T5's masked spans and the sentinels that stand for them (Raffel et al. 2020, section 3.1.4).

The rules that involve rounding are here alone; the compiled twin receives counts. The numpy functions are its oracle
and its fallback.

Shape suffixes: L raw tokens of a piece, M noise or non-noise tokens, B samples, S encoder positions, T decoder
positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megaswitch.data.native import native
from megaswitch.data.rng import UInt64s, derive_next, shuffle_numpy
from megaswitch.utils.errors import UserError

Int64s = NDArray[np.int64]
Bools = NDArray[np.bool_]

EOS = 1
NUM_SENTINELS = 100
_NOISE, _OTHER = 1, 2  # purposes of a sample's key; csrc/spans.cpp says the same


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


@dataclass(frozen=True)
class SpanPlan:
    """All lengths and ids of one corruption; made by `plan_spans`, equal for every sample of a run."""

    raw_length: int
    noise: int
    spans: int
    encoder_length: int
    decoder_length: int
    first_sentinel: int


def plan_spans(
    encoder_length: int, decoder_length: int, first_sentinel: int, density: float = 0.15, mean_span: float = 3.0
) -> SpanPlan:
    """The plan that fills `encoder_length`; UserError where the decoder is too short or the sentinels too few."""
    raw_length, target_length = random_spans_helper(encoder_length, density, mean_span)
    if decoder_length < target_length:
        raise UserError(
            f"the decoder's length of {decoder_length} is too small: an encoder length of {encoder_length} gives "
            f"targets of "
            f"{target_length} tokens; set model.decoder_length to {target_length} or more"
        )
    noise, spans = noise_counts(raw_length, density, mean_span)
    if spans > NUM_SENTINELS or spans > raw_length - noise:
        raise UserError(
            f"an encoder length of {encoder_length} needs {spans} spans of {noise} masked tokens, but there are "
            f"{NUM_SENTINELS} "
            f"sentinels and {raw_length - noise} tokens to stand between: shorten the encoder, or mask longer or "
            f"fewer spans "
            f"(data.mean_span_length, data.noise_density)"
        )
    return SpanPlan(raw_length, noise, spans, encoder_length, decoder_length, first_sentinel)


def draw_indicators(items: int, segments: int, key: int) -> Int64s:
    """First-of-segment indicators, int64 of shape M: `segments - 1` ones shuffled behind a leading zero."""
    first_M = np.zeros(items, np.int64)
    first_M[1:segments] = 1
    shuffle_numpy(first_M[1:], key)
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


def _fit(ids: Int64s, room: int) -> Int64s:
    """Cuts to room - 1 tokens and EOS, or pads with 0: where the helper's rounding and the mask's differ, text is cut
    as in T5."""
    if ids.size > room:
        return np.append(ids[: room - 1], EOS)
    return np.pad(ids, (0, room - ids.size))


def corrupt_numpy(raw_BL: Int64s, keys_B: UInt64s, plan: SpanPlan) -> tuple[Int64s, Int64s]:
    """The oracle and fallback of `corrupt`; same arguments, same bits."""
    inputs_BS = np.zeros((len(raw_BL), plan.encoder_length), np.int64)
    targets_BT = np.zeros((len(raw_BL), plan.decoder_length), np.int64)
    others = max(plan.raw_length, 2) - plan.noise
    for b, key in enumerate(keys_B.tolist()):
        first_noise_M = draw_indicators(plan.noise, plan.spans, derive_next(key, _NOISE))
        first_other_M = draw_indicators(others, plan.spans, derive_next(key, _OTHER))
        mask_L = mask_from_indicators(first_noise_M, first_other_M, plan.raw_length)
        inputs_BS[b] = _fit(replace_runs(raw_BL[b], mask_L, plan.first_sentinel), plan.encoder_length)
        targets_BT[b] = _fit(replace_runs(raw_BL[b], ~mask_L, plan.first_sentinel), plan.decoder_length)
    return inputs_BS, targets_BT


def corrupt(raw_BL: Int64s, keys_B: UInt64s, plan: SpanPlan) -> tuple[Int64s, Int64s]:
    """Encoder inputs (B, S) and targets (B, T), int64, of raw pieces and one random key a sample; 0 pads."""
    compiled = native()
    if compiled is None:
        return corrupt_numpy(raw_BL, keys_B, plan)
    inputs_BS = np.empty((len(raw_BL), plan.encoder_length), np.int64)
    targets_BT = np.empty((len(raw_BL), plan.decoder_length), np.int64)
    compiled.corrupt(raw_BL, keys_B, plan.noise, plan.spans, plan.first_sentinel, EOS, inputs_BS, targets_BT)
    return inputs_BS, targets_BT
