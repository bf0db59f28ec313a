"""Boxes: what a flat range of a row-major tensor consists of."""

from math import prod

import torch
from hypothesis import given
from hypothesis import strategies as st

from megaswitch.params.boxes import Box, boxes

Range = tuple[tuple[int, ...], int, int]


@st.composite
def ranges(draw: st.DrawFn, most_dims: int = 4) -> Range:
    """A shape and a flat range of it."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=0, max_size=most_dims)))
    start = draw(st.integers(0, prod(shape)))
    return shape, start, draw(st.integers(start, prod(shape)))


@given(ranges())
def test_boxes_cover_the_range_exactly_and_in_order(case):
    shape, start, stop = case
    numbers = torch.arange(prod(shape)).view(shape)
    found = [numbers[box.slices].flatten() for box in boxes(start, stop, shape)]
    assert torch.equal(torch.cat([torch.zeros(0, dtype=torch.int64), *found]), torch.arange(start, stop))


@given(ranges())
def test_each_box_is_a_run_of_the_flat_range(case):
    shape, start, stop = case
    numbers, at = torch.arange(prod(shape)).view(shape), start
    for box in boxes(start, stop, shape):
        assert len(box.shape) == len(shape) and box.size > 0
        assert torch.equal(torch.arange(at, at + box.size).view(box.shape), numbers[box.slices])
        at += box.size
    assert at == stop


@given(ranges())
def test_there_are_few(case):
    """One, two or three for a matrix; two more for each further dimension."""
    shape, start, stop = case
    assert len(boxes(start, stop, shape)) <= max(1, 2 * len(shape) - 1)


def test_a_matrix_by_hand():
    assert boxes(2, 11, (4, 3)) == [Box((0, 2), (1, 1)), Box((1, 0), (2, 3)), Box((3, 0), (1, 2))]
    assert boxes(3, 9, (4, 3)) == [Box((1, 0), (2, 3))]
    assert boxes(4, 5, (4, 3)) == [Box((1, 1), (1, 1))]
    assert boxes(5, 5, (4, 3)) == boxes(6, 2, (4, 3)) == []
    assert boxes(0, 1, ()) == [Box((), ())]


@given(ranges(most_dims=3), st.data())
def test_a_part_of_a_part_lies_in_the_whole(case, data):
    shape, start, stop = case
    offset = tuple(data.draw(st.integers(0, 3)) for _ in shape)
    whole = torch.arange(prod(n + 3 for n in shape)).view(tuple(n + 3 for n in shape))
    outer = Box(offset, shape)
    for box in boxes(start, stop, shape):
        assert torch.equal(whole[outer.slices][box.slices], whole[box.within(outer).slices])
