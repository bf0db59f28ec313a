"""What two checkpoints differ in, tensor by tensor, one block at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, prod

import torch
from torch import Tensor

from megaswitch.checkpoint.reader import Reader
from megaswitch.checkpoint.rewrite import BLOCK_BYTES, Advance, cut, whole


@dataclass(frozen=True)
class Difference:
    """One tensor that differs: elements whose bits differ, the largest absolute difference of values and the largest
    absolute value among both; or in words what makes it incomparable."""

    name: str
    elements: int = 0
    size: int = 0
    largest: float = 0.0
    scale: float = 0.0
    words: str = ""

    def __str__(self) -> str:
        if self.words:
            return f"{self.name}  {self.words}"
        relative = f" ({self.largest / self.scale:.2g} of the largest value)" if 0 < self.scale < inf else ""
        return f"{self.name}  {self.elements} of {self.size} elements differ, by {self.largest:.3g} at most{relative}"


def compare(one: Reader, other: Reader, advance: Advance) -> Iterator[Difference]:
    """The tensors that differ, in the order of their names; `advance` hears of bytes compared."""
    for name in sorted(one.tensors.keys() | other.tensors.keys()):
        if name not in one.tensors or name not in other.tensors:
            yield Difference(name, words=f"is only in {one.path if name in one.tensors else other.path}")
            continue
        mine, theirs = one.tensors[name], other.tensors[name]
        if mine != theirs:
            shapes = [f"{str(i.dtype).removeprefix('torch.')} {list(i.shape)}" for i in (mine, theirs)]
            yield Difference(name, words=f"is {shapes[0]} and {shapes[1]}")
            continue
        found = _compare(one, other, name, advance)
        if found.elements:
            yield found


def _compare(one: Reader, other: Reader, name: str, advance: Advance) -> Difference:
    info = one.tensors[name]
    elements, largest, scale = 0, 0.0, 0.0
    for box in cut(whole(info), BLOCK_BYTES // info.dtype.itemsize):
        x, y = one.read(name, box), other.read(name, box)
        advance(box.size * info.dtype.itemsize)
        differs = _bits_differ(x, y)
        if count := int(differs.sum()):
            x, y = x.reshape(-1).double(), y.reshape(-1).double()
            elements, largest = elements + count, max(largest, _top((x - y)[differs]))
            scale = max(scale, _top(x), _top(y))
    return Difference(name, elements, prod(info.shape), largest, scale)


def _bits_differ(x: Tensor, y: Tensor) -> Tensor:
    """For each element whether its bits differ, so that a NaN equals itself."""
    width = x.element_size()
    bits = [t.reshape(-1).view(torch.uint8).view(-1, width) for t in (x, y)]
    return (bits[0] != bits[1]).any(dim=1)


def _top(x: Tensor) -> float:
    """The largest absolute value; infinite when there is something that is no number."""
    return float(x.abs().nan_to_num(nan=torch.inf, posinf=torch.inf).max()) if x.numel() else 0.0
