"""Splits by document: every document once, shares kept, no seed, clear refusals."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaswitch.data.config import DataConfig
from megaswitch.data.split import parse_split, split_counts, split_documents
from megaswitch.utils.errors import UserError

shares = st.lists(st.integers(0, 100), min_size=3, max_size=3).filter(any)


@given(st.integers(0, 500), shares)
def test_every_document_is_in_exactly_one_part(count, weights):
    parts = split_documents(count, parse_split(",".join(map(str, weights))))
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    assert all((np.diff(part) > 0).all() for part in parts)


@given(st.integers(0, 10_000), shares)
def test_counts_are_the_shares(count, weights):
    parsed = parse_split(",".join(map(str, weights)))
    counts = split_counts(count, parsed)
    assert sum(counts) == count
    for number, share in zip(counts, parsed, strict=True):
        assert abs(number - share * count) <= 2  # a rounded cut at either end, or one given away
        assert number == 0 if share == 0 else number > 0 or count < 3


def test_the_default_split():
    counts = split_counts(10_000, parse_split(DataConfig().split))
    assert counts == [9800, 100, 100]


def test_the_assignment_is_fixed_for_ever():
    # Were these numbers to change, documents held out of a finished run would be trained on by its continuation.
    assert split_documents(1000, parse_split("0.99,0.005,0.005"))[1].tolist() == FIXED_VALID
    assert split_documents(1000, parse_split("0.99,0.005,0.005"))[2].tolist() == FIXED_TEST


FIXED_VALID = [15, 50, 330, 341, 384]
FIXED_TEST = [146, 261, 319, 639, 773]


def test_weights_are_exact():
    assert parse_split("0.7, 0.2, 0.1") == (Fraction(7, 10), Fraction(2, 10), Fraction(1, 10))
    assert parse_split("98,1,1") == parse_split("0.98,0.01,0.01")


@pytest.mark.parametrize(
    "text", ["", "1", "0.9,0.1", "1,1,1,1", "0,0,0", "a,b,c", "1,-1,1", "nan,1,1", "inf,1,1", "1,,1"]
)
def test_bad_splits_are_refused(text):
    with pytest.raises(UserError, match=r"data\.split"):
        parse_split(text)
