"""Partitions of a tensor, against counting its elements one by one."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megaswitch.checkpoint.cover import intersection, trouble_with_cover
from megaswitch.params.boxes import Box, boxes

SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@st.composite
def shape_and_boxes(draw):
    shape = draw(SHAPES)

    def box():
        offset = tuple(draw(st.integers(0, n)) for n in shape)
        return Box(offset, tuple(draw(st.integers(0, n - o)) for o, n in zip(offset, shape, strict=True)))

    return shape, [box() for _ in range(draw(st.integers(0, 4)))]


@st.composite
def partitions(draw):
    """Shards along one dimension, each cut into flat ranges, as ZeRO cuts tensor-parallel parts."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    dim = draw(st.integers(0, len(shape) - 1))
    edges = [0, *sorted(draw(st.sets(st.integers(1, shape[dim])))), shape[dim]]
    found = []
    for start, stop in pairwise(edges):
        offset = tuple(start if d == dim else 0 for d in range(len(shape)))
        outer = Box(offset, (*shape[:dim], stop - start, *shape[dim + 1 :]))
        cuts = [0, *sorted(draw(st.sets(st.integers(0, outer.size)))), outer.size]
        for a, b in pairwise(cuts):
            found += [box.within(outer) for box in boxes(a, b, outer.shape)]
    return shape, draw(st.permutations(found))


@given(shape_and_boxes())
def test_against_counting(case):
    shape, parts = case
    count = torch.zeros(shape, dtype=torch.int64)
    for box in parts:
        count[box.slices] += 1
    assert (trouble_with_cover(parts, shape) == "") == bool((count == 1).all())


@given(partitions())
def test_what_layouts_make_is_accepted(case):
    shape, parts = case
    assert trouble_with_cover(parts, shape) == ""
    assert "of" in trouble_with_cover(parts[1:], shape)
    assert trouble_with_cover([*parts, parts[0]], shape) == "its parts overlap"


def test_outside_and_of_other_dimensions():
    assert "outside" in trouble_with_cover([Box((0,), (3,))], (2,))
    assert "outside" in trouble_with_cover([Box((), ())], (1,))
    assert trouble_with_cover([Box((), ())], ()) == ""
    assert trouble_with_cover([Box((), ())] * 2, ()) == "its parts overlap"


def test_equal_volume_is_not_enough():
    assert trouble_with_cover([Box((0, 0), (2, 1)), Box((0, 0), (1, 2))], (2, 2)) == "its parts overlap"


def test_a_pinwheel_that_no_plane_divides():
    parts = [Box((0, 0), (1, 2)), Box((0, 2), (2, 1)), Box((2, 1), (1, 2)), Box((1, 0), (2, 1)), Box((1, 1), (1, 1))]
    assert trouble_with_cover(parts, (3, 3)) == ""


@pytest.mark.timeout(60)  # either would take hours without a limit to the work
def test_hostile_numbers_of_boxes_end():
    n = 20_000
    crossing = [Box((0, i), (n, 1)) if i % 2 else Box((i, 0), (1, n)) for i in range(n)]
    assert trouble_with_cover(crossing, (n, n)) == "its parts are cut in a way that takes too long to check"
    rows = [Box((i, i), (1, n - i)) for i in range(n)]
    columns = [Box((i + 1, i), (n - i - 1, 1)) for i in range(n)]
    assert "too long" in trouble_with_cover(rows + columns, (n, n))  # comes apart, but by one plane at a time


@given(shape_and_boxes())
def test_intersections(case):
    shape, parts = case
    for a in parts:
        for b in parts:
            both = torch.zeros(shape, dtype=torch.int64)
            both[a.slices] += 1
            both[b.slices] += 1
            shared = intersection(a, b)
            assert (shared.size if shared else 0) == int((both == 2).sum())
