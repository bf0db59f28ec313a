"""Span corruption against the published vectors: lengths, counts, masks from indicators, inputs and targets from
masks."""

import os
from pathlib import Path

import numpy as np
import pytest
from data.corruption import corrupt, keys

from megaswitch.data import spans
from megaswitch.data.denoise import Kind, Rule, denoise_numpy
from megaswitch.data.spans import mask_from_indicators, noise_counts, random_spans_helper, replace_runs

VECTORS = Path(os.environ.get("MEGASWITCH_GOLDEN") or Path(__file__).parent / "vectors")
FIRST_SENTINEL = 32_099


def vectors(name):
    with np.load(VECTORS / name) as content:
        return dict(content)


def cases():
    content = vectors("span_corruption.npz")
    names = sorted({key.split("_")[0] for key in content})
    return [
        (name, {key.partition("_")[2]: value for key, value in content.items() if key.split("_")[0] == name})
        for name in names
    ]


def test_helper_gives_the_published_lengths():
    content = vectors("span_helper.npz")
    ours = [random_spans_helper(int(length)) for length in content["inputs_length"]]
    np.testing.assert_array_equal(ours, content["result"])


def test_counts_follow_float32_rounding():
    content = vectors("span_counts.npz")
    ours = [(max(int(length), 2), *noise_counts(int(length))) for length in content["length"]]
    np.testing.assert_array_equal(ours, content["counts"])


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in cases()])
def test_inputs_and_targets_of_a_mask(case):
    ours = replace_runs(case["tokens"], case["mask"], FIRST_SENTINEL)
    np.testing.assert_array_equal(ours, case["inputs"])
    ours = replace_runs(case["tokens"], ~case["mask"], FIRST_SENTINEL)
    np.testing.assert_array_equal(ours, case["targets"])


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in cases() if "first_noise" in case])
def test_mask_of_indicators(case):
    ours = mask_from_indicators(case["first_noise"], case["first_nonnoise"], case["tokens"].size)
    np.testing.assert_array_equal(ours, case["mask"])
    assert noise_counts(case["tokens"].size) == (case["first_noise"].size, case["noise_lens"].size)


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in cases() if "first_noise" in case])
def test_lengths_of_segments(case):
    """As runs of the mask have them, non-noise first; a piece of one token counts as two, of which one is cut off."""
    ours = mask_from_indicators(case["first_noise"], case["first_nonnoise"], max(case["tokens"].size, 2))
    edges = np.flatnonzero(np.diff(ours, prepend=~ours[:1], append=~ours[-1:]))
    np.testing.assert_array_equal(np.diff(edges)[0::2], case["nonnoise_lens"])
    np.testing.assert_array_equal(np.diff(edges)[1::2], case["noise_lens"])


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in cases() if "first_noise" in case])
def test_numpy_corruption_with_the_published_indicators(case, monkeypatch):
    """The whole path, the drawing of indicators alone replaced by the published ones."""
    drawn = iter([case["first_noise"], case["first_nonnoise"]])
    monkeypatch.setattr(spans, "draw_indicators", lambda items, segments, key: next(drawn))
    tokens, inputs, targets = case["tokens"], case["inputs"], case["targets"]
    rule = Rule(Kind.SPANS, tokens.size, *noise_counts(tokens.size))
    ours = denoise_numpy(rule, tokens, 0, FIRST_SENTINEL)
    np.testing.assert_array_equal(ours[0], inputs)
    np.testing.assert_array_equal(ours[1], targets)


def test_compiled_corruption_obeys_the_published_rule():
    """The mask that a compiled sample used is read back from its sentinels; the rule applied to it gives the sample."""
    case = dict(cases())["0"]
    tokens = np.arange(200, 200 + case["tokens"].size)  # distinct, below every sentinel
    rule = Rule(Kind.SPANS, tokens.size, *noise_counts(tokens.size))
    lengths = (case["inputs"].size, case["targets"].size)
    inputs_BS, targets_BT = corrupt(np.tile(tokens, (16, 1)), keys(16), rule, lengths, FIRST_SENTINEL)
    for inputs, targets in zip(inputs_BS, targets_BT, strict=True):
        mask = ~np.isin(tokens, inputs)
        np.testing.assert_array_equal(replace_runs(tokens, mask, FIRST_SENTINEL), inputs)
        np.testing.assert_array_equal(replace_runs(tokens, ~mask, FIRST_SENTINEL), targets)
