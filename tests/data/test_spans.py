"""Span corruption beyond the golden vectors: the C++ twin, the shape of masks, what is refused."""

from itertools import combinations

import numpy as np
import pytest
from data.corruption import corrupt, corrupt_numpy, keys
from hypothesis import given
from hypothesis import strategies as st

from megaswitch.data.denoise import Kind, Rule
from megaswitch.data.objectives import span_corruption
from megaswitch.data.spans import noise_counts, random_spans_helper
from megaswitch.utils.errors import UserError

FIRST_SENTINEL = 9999


@given(
    st.integers(1, 300),
    st.integers(0, 1 << 62),
    st.integers(0, 3),
    st.sampled_from([(0.15, 3.0), (0.3, 1.0), (0.5, 5.0)]),
)
def test_twins_give_the_same_bits(length, seed, spare, rule):
    noise, spans = noise_counts(length, *rule)
    # Room from too small, where text is cut, to more than enough, where it is padded.
    room = max(length + spare - 1, 2)
    rule = Rule(Kind.SPANS, length, noise, spans)
    raw = np.random.default_rng(seed).integers(2, 900, (3, length))
    arguments = (raw, keys(3, seed), rule, (room, room))
    for ours, theirs in zip(corrupt_numpy(*arguments), corrupt(*arguments), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_nothing_is_lost_and_nothing_doubled():
    plan = span_corruption(512, 114)
    raw = np.tile(np.arange(100, 100 + plan.length), (20, 1))
    inputs_BS, targets_BT = corrupt(raw, keys(20), plan, (512, 114), FIRST_SENTINEL)
    for inputs, targets in zip(inputs_BS, targets_BT, strict=True):
        assert inputs[-1] == targets[-1] == 1 and (inputs == 0).sum() == (targets == 0).sum() == 0
        sentinels = [i for i in inputs if i > 9000]
        assert sentinels == [i for i in targets if i > 9000] == list(range(9999, 9999 - plan.spans, -1))
        text = sorted(i for i in [*inputs, *targets] if 1 < i < 9000)
        assert text == raw[0].tolist()
        assert targets[0] == 9999 and inputs[0] == 100  # text first, noise last
        assert inputs[-2] == sentinels[-1]


def test_each_position_is_masked_as_often_as_over_all_masks():
    plan, samples = span_corruption(64, 14), 20_000
    raw = np.tile(np.arange(100, 100 + plan.length), (samples, 1))
    _, targets_BT = corrupt(raw, keys(samples), plan, (64, 14), FIRST_SENTINEL)
    counts = np.bincount(targets_BT[(targets_BT >= 100) & (targets_BT < 9000)] - 100, minlength=plan.length)
    assert counts.sum() == samples * plan.noise  # exactly so many in every sample
    # Every composition of 10 noise and of 60 other tokens in 3 parts is equally likely.
    total, masks = np.zeros(plan.length), 0
    for noise_cuts in combinations(range(1, plan.noise), 2):
        noise = np.diff([0, *noise_cuts, plan.noise])
        for other_cuts in combinations(range(1, plan.length - plan.noise), 2):
            ends = np.array([*other_cuts, plan.length - plan.noise]) + np.cumsum(noise)
            for end, length in zip(ends, noise, strict=True):
                total[end - length : end] += 1
            masks += 1
    rate = total / masks
    assert (np.abs(counts - samples * rate) <= 5 * np.sqrt(samples * rate * (1 - rate))).all()


def test_span_lengths_are_uniform_compositions():
    """Of 10 noise tokens in 3 spans the first has length k with probability C(9-k, 1) / C(9, 2) (10 items, 2 cuts in 9
    gaps)."""
    plan = span_corruption(64, 14)
    assert (plan.noise, plan.spans) == (10, 3)
    raw = np.full((36_000, plan.length), 7)
    _, targets_BT = corrupt(raw, keys(36_000), plan, (64, 14), FIRST_SENTINEL)
    first_lengths = np.argmax(targets_BT == 9998, axis=1) - 1
    counts = np.bincount(first_lengths, minlength=9)[1:]
    expected = np.array([9 - k for k in range(1, 9)]) * 1000
    assert ((counts - expected) ** 2 / expected).sum() < 30  # 7 degrees of freedom: one generator of 10,000 exceeds it


def test_lengths_of_the_presets():
    assert random_spans_helper(512) == (568, 114)
    assert random_spans_helper(64) == (70, 14)


def test_a_longer_decoder_is_padded():
    plan = span_corruption(64, 20)
    _, targets_BT = corrupt(np.full((2, 70), 5), keys(2), plan, (64, 20), FIRST_SENTINEL)
    assert (targets_BT[:, 13] == 1).all() and (targets_BT[:, 14:] == 0).all()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((64, 13), "set model.decoder_length to 14"),
        ((4096, 4096), "100 sentinels"),
        ((2, 50), "too short to mask a span"),
        ((9, 50), "too short to mask a span"),
        ((0, 50), "too short to mask a span"),
        ((64, 64, 0.0), "data.noise_density"),
        ((64, 64, 1.0), "data.noise_density"),
        ((64, 64, float("nan")), "data.noise_density"),
        ((64, 64, 0.15, 0.5), "data.mean_span_length"),
        ((32, 900, 0.95, 1.0), "tokens to stand between"),
    ],
)
def test_lengths_that_cannot_work_are_refused(arguments, says):
    with pytest.raises(UserError, match=says):
        span_corruption(*arguments)
