"""What users may write for corpora: weights, names, lists in files, weights by temperature."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaswitch.data.blend import integer_weights
from megaswitch.data.mixture import Entry, parse_entries, parse_sets, temperature_weights
from megaswitch.utils.errors import MissingInputError, UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b", [(1, "a/b")]),
        ("0.5:a", [(1, "a")]),
        ("0.7:a,0.3:b", [(Fraction(7, 10), "a"), (Fraction(3, 10), "b")]),
        (" 2:a , 1:b:c ", [(2, "a"), (1, "b:c")]),
        ("/x:y/corpus", [(1, "/x:y/corpus")]),
        ("task:a.tsv", [(1, "task:a.tsv")]),
        ("2:task:a.tsv,1:b", [(2, "task:a.tsv"), (1, "b")]),
    ],
)
def test_ways_to_write_corpora(text, expected):
    assert [(e.weight, e.source) for e in parse_entries(text, "data.train")] == expected


@pytest.mark.parametrize(
    "text", ["", "  ", "a,b", "0.5:a,b", "0:a,1:b", "-1:a,2:b", "nan:a,1:b", "1:,2:b", "1:a,", "0.3.1:a,1:b"]
)
def test_bad_corpora_are_refused_by_the_key(text):
    with pytest.raises(UserError, match=r"data\.train"):
        parse_entries(text, "data.train")




def test_lists_in_files_are_seen_from_their_folder(tmp_path):
    (tmp_path / "list.txt").write_text("# eight\n0.5:en/all  # English\n\n0.25:task:pairs.tsv\n0.25:/there/x\n")
    entries = parse_entries(f"@{tmp_path}/list.txt", "data.train")
    assert [e.source for e in entries] == [f"{tmp_path}/en/all", f"task:{tmp_path}/pairs.tsv", "/there/x"]
    assert [e.weight for e in entries] == [Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)]
    (tmp_path / "valid.txt").write_text("en=a\nde=b\n")
    assert parse_sets(f"@{tmp_path}/valid.txt", "data.valid") == {"en": f"{tmp_path}/a", "de": f"{tmp_path}/b"}
    with pytest.raises(MissingInputError, match=r"data\.train names the list .*gone"):
        parse_entries(f"@{tmp_path}/gone", "data.train")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(UserError, match=r"data\.train is empty"):
        parse_entries(f"@{tmp_path}/empty.txt", "data.train")


def test_named_sets():
    assert parse_sets("en=a/b, de=c,en=d", "data.valid") == {"en": "1:a/b,1:d", "de": "c"}
    assert parse_sets("0.5:a,0.5:b", "data.valid") == {"": "0.5:a,0.5:b"}
    assert parse_sets("some/x=1/path", "data.valid") == {"": "some/x=1/path"}
    with pytest.raises(UserError, match="'c' has no name"):
        parse_sets("en=a,c", "data.valid")


def test_weights_by_hand_and_by_size_exclude_each_other():
    assert parse_entries("a,b", "data.train", temperature=2.0) == [Entry("a", Fraction(1)), Entry("b", Fraction(1))]
    with pytest.raises(UserError, match="leave one of them out"):
        parse_entries("0.5:a,0.5:b", "data.train", temperature=2.0)


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=300), st.floats(0.5, 100.0))
def test_temperature_weights_are_the_rule(sizes, temperature):
    weights = temperature_weights(sizes, temperature)
    total = sum(size ** (1 / temperature) for size in sizes)
    for weight, size in zip(weights, sizes, strict=True):
        exact = size ** (1 / temperature) / total * (1 << 24)
        assert weight == 1 if exact < 0.5 else abs(float(weight) - exact) <= 0.5 + 1e-6 * exact
    assert sum(integer_weights(weights)) <= (1 << 24) + len(sizes)


def test_a_temperature_of_one_goes_by_size_and_a_high_one_makes_all_alike():
    assert temperature_weights([3, 1], 1.0) == [3 << 22, 1 << 22]
    high = temperature_weights([10**9, 1], 1e6)
    assert abs(float(high[0] / high[1]) - 1) < 1e-4
