"""Boxes: axis-aligned parts of a tensor, and the boxes that a flat range of it consists of."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Box:
    """The part of a tensor from `offset`, of size `shape`, one number a dimension."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Elements of the box."""
        return prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """What indexes the box in its tensor."""
        return tuple(slice(o, o + n) for o, n in zip(self.offset, self.shape, strict=True))

    def within(self, outer: "Box") -> "Box":
        """This box of a part, in coordinates of the whole, when the part lies there as `outer`."""
        return Box(tuple(a + b for a, b in zip(self.offset, outer.offset, strict=True)), self.shape)


def boxes(start: int, stop: int, shape: Sequence[int]) -> list[Box]:
    """The boxes, in order, that elements [start, stop) of a row-major tensor of `shape` consist of.

    A matrix needs three at most: the end of a row, whole rows, the beginning of a row. Each box is
    contiguous in the flat range, so a slice of it can be viewed in the box's shape.
    """
    if start >= stop:
        return []
    if not shape:
        return [Box((), ())]
    inner = prod(shape[1:])
    first, head = divmod(start, inner)
    last, tail = divmod(stop, inner)
    rest = tuple(shape[1:])
    if first == last:
        return [_under(first, box) for box in boxes(head, tail, rest)]
    found: list[Box] = []
    if head:
        found += [_under(first, box) for box in boxes(head, inner, rest)]
        first += 1
    if last > first:
        found.append(Box((first, *(0 for _ in rest)), (last - first, *rest)))
    return found + [_under(last, box) for box in boxes(0, tail, rest)]


def _under(index: int, box: Box) -> Box:
    return Box((index, *box.offset), (1, *box.shape))
