"""The generator: known values, the C++ twin, no bias, nothing lost by a shuffle."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaswitch.data import _native
from megaswitch.data.native import NATIVE_VERSION
from megaswitch.data.rng import (
    MASK,
    bounded,
    derive,
    derive_each,
    derive_next,
    draw,
    permutation,
    shuffle,
    shuffle_numpy,
)

words = st.integers(0, MASK)


def test_extension_is_of_this_version():
    assert _native.VERSION == NATIVE_VERSION


def test_draws_are_the_published_splitmix64_sequence():
    # The generator seeded with 1234567 gives these values in every implementation.
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert draw(1234567, np.arange(5, dtype=np.uint64)).tolist() == known


@given(words, words, st.integers(1, MASK))
def test_twins_draw_the_same_bounded_integer(key, counter, bound):
    ours = bounded(key, np.array([counter], np.uint64), np.array([bound], np.uint64))
    assert int(ours[0]) == _native.bounded(key, counter, bound) < bound


def test_bound_that_rejects_half_of_the_draws():
    bound = (1 << 63) + 1
    counters = np.arange(1000, dtype=np.uint64)
    ours = bounded(5, counters, np.full(1000, bound, np.uint64))
    assert ours.tolist() == [_native.bounded(5, int(c), bound) for c in counters]
    # Without rejection a quarter more of the values would fall into the lower half.
    assert abs(np.mean(ours < np.uint64(bound // 2)) - 0.5) < 0.06


def test_small_bound_is_uniform():
    counts = np.bincount(bounded(9, np.arange(60_000, dtype=np.uint64), np.full(60_000, 6, np.uint64)).astype(int))
    # Chi-squared with 5 degrees of freedom stays below 25 but in one of 7,000 generators.
    assert counts.size == 6 and ((counts - 10_000) ** 2 / 10_000).sum() < 25


@given(st.integers(0, 200), words)
def test_twins_shuffle_alike_and_lose_nothing(count, key):
    ours, theirs = np.arange(count), np.arange(count)
    shuffle_numpy(ours, key)
    _native.shuffle(theirs, key)
    assert ours.tolist() == theirs.tolist()
    assert sorted(ours.tolist()) == list(range(count))


def test_every_order_of_three_is_equally_likely():
    orders = [tuple(permutation(3, derive(7, i)).tolist()) for i in range(6000)]
    counts = np.array([orders.count(order) for order in set(orders)])
    assert counts.size == 6 and ((counts - 1000) ** 2 / 1000).sum() < 25


def test_shuffle_refuses_what_it_would_have_to_copy():
    with pytest.raises(TypeError):
        _native.shuffle(np.arange(10, dtype=np.int32), 1)
    with pytest.raises(TypeError):
        _native.shuffle(np.arange(20)[::2], 1)


def test_shuffle_without_the_extension(without_extension):
    values = np.arange(100)
    shuffle(values, 3)
    expected = np.arange(100)
    _native.shuffle(expected, 3)
    assert values.tolist() == expected.tolist()


@given(st.lists(st.integers(-(1 << 63), MASK), min_size=1, max_size=4))
def test_keys_build_on_one_another(path):
    key = derive(*path)
    assert 0 <= key <= MASK
    assert derive_next(derive(*path[:-1]), path[-1]) == key
    assert derive_each(derive(*path[:-1]), np.array([path[-1] & MASK], np.uint64)).tolist() == [key]


def test_order_of_words_matters():
    assert len({derive(1, 2), derive(2, 1), derive(1), derive(2), derive(1, 2, 0), derive()}) == 6
