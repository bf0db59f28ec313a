"""Blends: shares within one sample at every prefix, random access, the C++ twin, what users may write."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaswitch.data import _native
from megaswitch.data.blend import _BLOCK, Blend, fill_numpy, integer_weights
from megaswitch.utils.errors import UserError

weights = st.lists(st.integers(1, 1000), min_size=1, max_size=9)


def unroll(filler, weights, count):
    weights_K = np.array(weights, np.int64)
    owed_K, taken_K = np.zeros_like(weights_K), np.zeros_like(weights_K)
    corpus_N, within_N = np.empty(count, np.int32), np.empty(count, np.int64)
    filler(weights_K, owed_K, taken_K, corpus_N, within_N)
    return corpus_N.tolist(), within_N.tolist(), owed_K.tolist(), taken_K.tolist()


@given(weights, st.integers(0, 300))
def test_twins_give_the_same_schedule(weights, count):
    assert unroll(fill_numpy, weights, count) == unroll(_native.blend_fill, weights, count)


@given(st.lists(st.integers(1, 1 << 49), min_size=2, max_size=12))
def test_twins_agree_where_products_need_128_bits(weights):
    assert unroll(fill_numpy, weights, 60) == unroll(_native.blend_fill, weights, 60)


@given(weights)
def test_shares_are_within_one_sample_at_every_prefix(weights):
    count = 2000
    corpus_N, _ = Blend(weights).locate(0, count)
    taken_NK = np.cumsum(corpus_N[:, None] == np.arange(len(weights)), axis=0)
    exact_NK = np.arange(1, count + 1)[:, None] * np.array(weights) / sum(weights)
    assert np.abs(taken_NK - exact_NK).max() < 1


@given(weights, st.integers(0, 5000), st.integers(0, 300))
def test_random_access_continues_each_corpus_without_gap(weights, first, count):
    corpus_N, within_N = Blend(weights).locate(0, first + count)
    for k in range(len(weights)):
        assert within_N[corpus_N == k].tolist() == list(range((corpus_N == k).sum()))
    later = Blend(weights).locate(first, count)
    assert later[0].tolist() == corpus_N[first:].tolist() and later[1].tolist() == within_N[first:].tolist()


def test_blocks_join_without_a_seam():
    weights = [70_001, 30_011, 100_003]
    whole = unroll(_native.blend_fill, weights, 3 * _BLOCK + 500)
    blend = Blend(weights)
    for first in (3 * _BLOCK - 100, _BLOCK - 100, 2 * _BLOCK - 1, 0):
        corpus_N, within_N = blend.locate(first, 400)
        assert corpus_N.tolist() == whole[0][first : first + 400]
        assert within_N.tolist() == whole[1][first : first + 400]


def test_far_samples_of_a_short_period_are_found_at_once():
    corpus_N, within_N = Blend([7, 3]).locate(10**15, 10)
    assert sorted(within_N[corpus_N == 0].tolist()) == [7 * 10**14 + i for i in range(7)]
    assert sorted(within_N[corpus_N == 1].tolist()) == [3 * 10**14 + i for i in range(3)]


def test_integer_weights():
    assert integer_weights([Fraction("0.7"), Fraction("0.3")]) == [7, 3]
    assert integer_weights([Fraction(2), Fraction(4)]) == [1, 2]
    with pytest.raises(UserError, match="digits"):
        integer_weights([Fraction("0.12345678901234567891"), Fraction("0.3")])


def test_shares_of_hundreds_of_corpora_are_exact_at_every_prefix():
    """A share is furthest off just before and just after its corpus is taken. In whole numbers nothing is rounded."""
    weights_K = np.random.default_rng(0).integers(1, 100_000, 400)
    total, count = int(weights_K.sum()), 3 * _BLOCK + 1000
    corpus_N, within_N = Blend(weights_K.tolist()).locate(0, count)
    before_N, own_N = np.arange(count), weights_K[corpus_N]
    assert ((within_N + 1) * total - (before_N + 1) * own_N < total).all()
    assert (before_N * own_N - within_N * total < total).all()
    taken_K = np.bincount(corpus_N, minlength=400)
    assert (np.abs(taken_K * total - count * weights_K) < total).all()
    for k in range(400):
        assert (np.diff(within_N[corpus_N == k]) == 1).all()
