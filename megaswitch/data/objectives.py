"""Objectives as rules: how long the pieces are that fill the model's lengths, and what becomes of them.

`span_corruption`: T5's and the Switch Transformer's. `prefix_lm`: T5's prefix language model, the place of the cut
drawn uniformly. `iid_denoising`: T5's baseline, each token masked by itself and runs of masked tokens replaced by a
sentinel. `ul2`: the seven denoisers of UL2 (Tay et al. 2022, table 2) in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, sqrt
from typing import Literal

from megaswitch.data.config import DataConfig
from megaswitch.data.denoise import Kind, Rule
from megaswitch.data.spans import NUM_SENTINELS, noise_counts, random_spans_helper
from megaswitch.utils.errors import UserError

Objective = Literal["span_corruption", "prefix_lm", "iid_denoising", "ul2"]

_SPREAD = 5  # standard deviations of the number of masked tokens that an i.i.d. piece leaves room for
_UL2_SPANS = ((3.0, 0.15), (8.0, 0.15), (3.0, 0.5), (8.0, 0.5), (64.0, 0.15), (64.0, 0.5))
_UL2_PREFIX = 0.25
_EXTREME_SPAN, _EXTREME_DENSITY = 12.0, 0.3  # from here on UL2 calls a denoiser extreme


def plan(objective: Objective, encoder_length: int, decoder_length: int, config: DataConfig) -> list[Rule]:
    """The rules that samples follow in turn; UserError where lengths or settings cannot work."""
    if objective == "span_corruption":
        return [span_corruption(encoder_length, decoder_length, config.noise_density, config.mean_span_length)]
    if objective == "prefix_lm":
        return [_prefix(encoder_length, decoder_length, 0.5)]
    if objective == "iid_denoising":
        return [_independent(encoder_length, decoder_length, config.noise_density)]
    regular, sequential, extreme = parse_modes(config.mode_tokens)
    rules = [_prefix(encoder_length, decoder_length, _UL2_PREFIX, sequential)]
    for mean_span, density in _UL2_SPANS:
        is_extreme = mean_span >= _EXTREME_SPAN or density >= _EXTREME_DENSITY
        mode = extreme if is_extreme else regular
        rules.append(_spans(encoder_length, decoder_length, density, mean_span, mode))
    return rules


def parse_modes(text: str) -> tuple[int, int, int]:
    """Ids of the regular, sequential and extreme mode tokens from `35,36,37`; -1 each where `text` is empty."""
    if not text.strip():
        return -1, -1, -1
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(
            f"data.mode_tokens is {text!r}; give three ids, of the regular, sequential and extreme mode: 35,36,37"
        )
    regular, sequential, extreme = (int(part) for part in parts)
    return regular, sequential, extreme


def span_corruption(encoder_length: int, decoder_length: int, density: float = 0.15, mean_span: float = 3.0) -> Rule:
    """The rule that fills `encoder_length`, as T5 computes it."""
    raw_length, target_length = random_spans_helper(encoder_length, density, mean_span)
    if decoder_length < target_length:
        raise UserError(
            f"the decoder's length of {decoder_length} is too small: an encoder length of {encoder_length} gives "
            f"targets of {target_length} tokens; set model.decoder_length to {target_length} or more"
        )
    noise, spans = noise_counts(raw_length, density, mean_span)
    if spans > NUM_SENTINELS or spans > raw_length - noise:
        raise UserError(
            f"an encoder length of {encoder_length} needs {spans} spans of {noise} masked tokens, but there are "
            f"{NUM_SENTINELS} sentinels and {raw_length - noise} tokens to stand between: shorten the encoder, or mask "
            f"longer or fewer spans (data.mean_span_length, data.noise_density)"
        )
    return Rule(Kind.SPANS, raw_length, noise, spans)


def span_sizes(length: int, density: float, mean_span: float) -> tuple[int, int]:
    """What a piece of `length` tokens takes on both sides, EOS included."""
    noise, spans = noise_counts(length, density, mean_span)
    hidden = min(noise, length - 1)  # of a single token, which counts as two, none
    return length - hidden + (spans if hidden else 0) + 1, hidden + spans + 1


def _longest(what: str, most: int, fits: Callable[[int], bool]) -> int:
    """The largest length up to `most` that fits."""
    for length in range(most, 1, -1):
        if fits(length):
            return length
    raise UserError(f"no piece of text for {what} fits the model's lengths: lengthen the encoder and the decoder")


def _spans(encoder_length: int, decoder_length: int, density: float, mean_span: float, mode: int) -> Rule:
    """The rule that fills encoder or decoder, whichever is full first, with no more spans than there are sentinels."""

    def fits(length: int) -> bool:
        inputs, targets = span_sizes(length, density, mean_span)
        noise, spans = noise_counts(length, density, mean_span)
        enough = spans <= min(NUM_SENTINELS, length - noise)
        return enough and inputs + (mode >= 0) <= encoder_length and targets <= decoder_length

    length = _longest(f"spans of {mean_span:g}", encoder_length + decoder_length, fits)
    noise, spans = noise_counts(length, density, mean_span)
    return Rule(Kind.SPANS, length, noise, spans, mode)


def _prefix(encoder_length: int, decoder_length: int, share: float, mode: int = -1) -> Rule:
    """The decoder gets 1 to 2 x share x length - 1 tokens, each number as likely."""

    def most(length: int) -> int:
        return max(1, min(length - 1, round(2 * share * length) - 1))

    def fits(length: int) -> bool:
        return length + (mode >= 0) <= encoder_length and most(length) + 1 <= decoder_length

    length = _longest("a prefix", encoder_length, fits)
    return Rule(Kind.PREFIX, length, most(length), 0, mode)


def _independent(encoder_length: int, decoder_length: int, density: float) -> Rule:
    if not 0 < density < 1:
        raise UserError(f"data.noise_density must lie between 0 and 1, got {density}")

    def fits(length: int) -> bool:
        """Mean lengths, and room for all but a few samples in a million; those few are cut."""
        noise, runs = length * density, length * density * (1 - density)
        spread = _SPREAD * sqrt(runs)
        inputs = length - noise + runs + spread / 2 + 1
        sentinels = runs + spread / 2 < NUM_SENTINELS
        return sentinels and inputs <= encoder_length and ceil(noise + runs + spread + 2) <= decoder_length

    length = _longest("i.i.d. denoising", encoder_length + decoder_length, fits)
    return Rule(Kind.INDEPENDENT, length, 0, NUM_SENTINELS - 1, -1, round(density * (1 << 53)))
