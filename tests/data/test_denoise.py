"""Kinds of denoising: the compiled twin, what is kept, and noise against its exact distribution."""

import numpy as np
import pytest
from data.corruption import corrupt, corrupt_numpy, keys
from hypothesis import given
from hypothesis import strategies as st

from megaswitch.data.config import DataConfig
from megaswitch.data.denoise import Kind, Rule
from megaswitch.data.objectives import parse_modes, plan, span_sizes
from megaswitch.data.spans import NUM_SENTINELS, noise_counts
from megaswitch.utils.errors import UserError

FIRST_SENTINEL = 9999
OBJECTIVES = ("span_corruption", "prefix_lm", "iid_denoising", "ul2")
MODES = DataConfig(mode_tokens="35,36,37")


def raw_pieces(length, count):
    return np.tile(np.arange(100, 100 + length), (count, 1))


def restored(inputs, targets, mode=-1):
    """The text of a sample, put together again; sentinels and tokens must alternate as they should."""
    inputs, targets = ([int(i) for i in ids] for ids in (inputs, targets))
    inputs, targets = inputs[: inputs.index(1)], targets[: targets.index(1)]
    if mode >= 0:
        assert inputs.pop(0) == mode
    spans, current = {}, None
    for token in targets:
        if token > FIRST_SENTINEL - NUM_SENTINELS:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    return [token for item in inputs for token in spans.get(item, [item])]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("lengths", [(512, 114), (64, 64), (40, 20)])
def test_twins_give_the_same_bits(objective, lengths):
    for rule in plan(objective, *lengths, MODES):
        arguments = (raw_pieces(rule.length, 40), keys(40, 3), rule, lengths, FIRST_SENTINEL)
        for ours, theirs in zip(corrupt_numpy(*arguments), corrupt(*arguments), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@given(st.integers(1, 200), st.integers(1, 20), st.integers(0, 1 << 53), st.integers(0, 1 << 60))
def test_twins_of_independent_noise(length, runs, threshold, seed):
    rule = Rule(Kind.INDEPENDENT, length, 0, runs, -1, threshold)
    arguments = (raw_pieces(length, 3), keys(3, seed), rule, (30, 30), FIRST_SENTINEL)
    for ours, theirs in zip(corrupt_numpy(*arguments), corrupt(*arguments), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("lengths", [(512, 114), (512, 512), (96, 32)])
def test_no_token_is_lost_and_rows_are_filled(objective, lengths):
    for rule in plan(objective, *lengths, MODES):
        inputs_BS, targets_BT = corrupt(raw_pieces(rule.length, 200), keys(200), rule, lengths, FIRST_SENTINEL)
        for inputs, targets in zip(inputs_BS, targets_BT, strict=True):
            if rule.kind == Kind.PREFIX:
                text = [i for i in [*inputs, *targets] if i > 1 and i != rule.mode]
            else:
                text = restored(inputs, targets, rule.mode)
            assert text == list(range(100, 100 + rule.length))
        # a longer piece would not fit, except where sentinels or the spread of i.i.d. noise say so first
        most = max((inputs_BS != 0).sum(1).max() / lengths[0], (targets_BT != 0).sum(1).max() / lengths[1])
        assert most > 0.9 or rule.spans >= NUM_SENTINELS - 2 or objective == "iid_denoising"


def test_independent_noise_has_the_share_it_should():
    density, count = 0.15, 20_000
    (rule,) = plan("iid_denoising", 128, 40, DataConfig(noise_density=density))
    _, targets = corrupt(raw_pieces(rule.length, count), keys(count), rule, (128, 64), FIRST_SENTINEL)
    places = targets[(targets >= 100) & (targets < 9000)] - 100
    counts = np.bincount(places, minlength=rule.length)
    assert counts[0] == 0  # the first token is never masked
    deviations = (counts[1:] - count * density) / np.sqrt(count * density * (1 - density))
    assert np.abs(deviations).max() < 5
    assert abs(deviations.sum() / np.sqrt(rule.length - 1)) < 5


def test_independent_noise_stops_where_sentinels_end():
    rule = Rule(Kind.INDEPENDENT, 500, 0, NUM_SENTINELS - 1, -1, 1 << 52)
    inputs, targets = corrupt(raw_pieces(500, 50), keys(50), rule, (600, 600), FIRST_SENTINEL)
    for row in range(50):
        assert restored(inputs[row], targets[row]) == list(range(100, 600))
    lowest = targets[targets > 9000].min()
    assert lowest == FIRST_SENTINEL + 1 - NUM_SENTINELS


def test_every_cut_of_a_prefix_is_as_likely():
    (rule,) = plan("prefix_lm", 12, 12, DataConfig())
    assert (rule.length, rule.noise) == (12, 11)
    _, targets = corrupt(raw_pieces(12, 22_000), keys(22_000), rule, (12, 12), FIRST_SENTINEL)
    counts = np.bincount((targets > 1).sum(1), minlength=12)
    assert counts[0] == 0
    assert ((counts[1:] - 2000) ** 2 / 2000).sum() < 40  # 10 degrees of freedom: one generator of 50,000 exceeds it


def test_ul2_is_its_seven_denoisers():
    rules = plan("ul2", 512, 512, MODES)
    assert [rule.mode for rule in rules] == [36, 35, 35, 37, 37, 37, 37]
    shares = [rule.noise / rule.length for rule in rules[1:]]
    np.testing.assert_allclose(shares, [0.15, 0.15, 0.5, 0.5, 0.15, 0.5], atol=0.01)
    for rule, mean_span in zip(rules[1:], (3, 8, 3, 8, 64, 64), strict=True):
        assert rule.spans == round(rule.noise / mean_span)
    assert rules[0].kind == Kind.PREFIX and rules[0].noise == round(0.5 * rules[0].length) - 1


@given(st.integers(1, 300), st.floats(0.01, 0.6), st.floats(1.5, 20.0))
def test_sizes_are_what_samples_take(length, density, mean_span):
    noise, spans = noise_counts(length, density, mean_span)
    spans = min(spans, max(length, 2) - noise)
    rule = Rule(Kind.SPANS, length, noise, spans)
    inputs, targets = corrupt_numpy(raw_pieces(length, 1), keys(1), rule, (800, 800), FIRST_SENTINEL)
    if spans == noise_counts(length, density, mean_span)[1]:
        assert ((inputs != 0).sum(), (targets != 0).sum()) == span_sizes(length, density, mean_span)


@pytest.mark.parametrize("text", ["1,2", "a,b,c", "1,2,3,4", "-1,2,3"])
def test_bad_mode_tokens_are_refused(text):
    with pytest.raises(UserError, match=r"data\.mode_tokens"):
        parse_modes(text)


@pytest.mark.parametrize(("objective", "lengths"), [("prefix_lm", (1, 9)), ("ul2", (2, 2)), ("iid_denoising", (4, 4))])
def test_lengths_too_short_are_refused(objective, lengths):
    with pytest.raises(UserError, match="lengthen"):
        plan(objective, *lengths, DataConfig())
