"""Whether the parts of a tensor are the whole of it: each element once."""

from collections.abc import Sequence
from math import prod

from megaswitch.params.boxes import Box

OVERLAP = "its parts overlap"
_MOST_WORK = 2_000_000
_WORK_A_BOX = 64
"""Looks at a box: nothing that we write comes near, and a hostile file must not cost minutes."""


def intersection(a: Box, b: Box) -> Box | None:
    """What two boxes of one tensor share; None when that is nothing."""
    offset = tuple(map(max, a.offset, b.offset))
    stop = tuple(min(x + n, y + m) for x, n, y, m in zip(a.offset, a.shape, b.offset, b.shape, strict=True))
    shape = tuple(z - x for x, z in zip(offset, stop, strict=True))
    return None if any(n <= 0 for n in shape) else Box(offset, shape)


def is_inside(box: Box, shape: Sequence[int]) -> bool:
    """Whether a box has the dimensions of a tensor and lies within it."""
    if not len(box.offset) == len(box.shape) == len(shape):
        return False
    return all(o >= 0 and n >= 0 and o + n <= size for o, n, size in zip(box.offset, box.shape, shape, strict=True))


def trouble_with_cover(boxes: Sequence[Box], shape: Sequence[int]) -> str:
    """What is wrong with boxes as a partition of a tensor of `shape`; empty when nothing is."""
    if outside := next((box for box in boxes if not is_inside(box, shape)), None):
        return f"the part at {list(outside.offset)} of shape {list(outside.shape)} lies outside {list(shape)}"
    held = [box for box in boxes if box.size]
    elements = sum(box.size for box in held)
    if elements < prod(shape):
        return f"its parts hold {elements} of {prod(shape)} elements"
    if elements > prod(shape):
        return OVERLAP
    return _trouble_with_overlap(held)  # of equal volume: whole exactly when nothing is there twice


def _trouble_with_overlap(boxes: list[Box]) -> str:
    """Whether any two boxes share an element, in words.

    Boxes are split by planes that cut none of them, as long as there is one; parts of a row-major range
    always come apart so. What does not is compared pair by pair.
    """
    todo = [boxes]
    budget = _MOST_WORK + _WORK_A_BOX * len(boxes)
    while todo:
        group = todo.pop()
        if len(group) < 2:
            continue
        parts = _split(group)
        budget -= len(group) if len(parts) > 1 else len(group) ** 2
        if budget < 0:
            return "its parts are cut in a way that takes too long to check"
        if len(parts) > 1:
            todo += parts
        elif any(intersection(a, b) for i, a in enumerate(group) for b in group[:i]):
            return OVERLAP
    return ""


def _split(boxes: list[Box]) -> list[list[Box]]:
    for dim in range(len(boxes[0].shape)):
        parts: list[list[Box]] = []
        end = -1
        for box in sorted(boxes, key=lambda b, d=dim: b.offset[d]):  # type: ignore[misc]
            if box.offset[dim] >= end:
                parts.append([])
            parts[-1].append(box)
            end = max(end, box.offset[dim] + box.shape[dim])
        if len(parts) > 1:
            return parts
    return [boxes]
