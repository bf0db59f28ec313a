"""Checkpoints made of others: cut into other files, or averaged. One block of one tensor is in memory at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from megaswitch.checkpoint.format import JSON, TensorInfo, shard_name
from megaswitch.checkpoint.hugging_face.stream import new_folder
from megaswitch.checkpoint.reader import Reader
from megaswitch.checkpoint.shard import Pending, write_stream
from megaswitch.checkpoint.store import assemble, write_manifest
from megaswitch.params.boxes import Box, boxes
from megaswitch.utils.errors import DataError

BLOCK_BYTES = 32 << 20
WEIGHT = "weight/"

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Part:
    """A box of a named global tensor, to be written as one tensor of a file."""

    name: str
    info: TensorInfo
    box: Box

    @property
    def key(self) -> str:
        """Its name in the file."""
        return f"{self.name}@{','.join(map(str, self.box.offset))}"

    @property
    def row(self) -> list[object]:
        """Its line of the manifest, as `assemble` reads it."""
        dtype = str(self.info.dtype).removeprefix("torch.")
        return [self.name, dtype, list(self.info.shape), self.key, list(self.box.offset), list(self.box.shape)]


def whole(info: TensorInfo) -> Box:
    """All of a tensor."""
    return Box((0,) * len(info.shape), info.shape)


def cut(box: Box, most: int) -> Iterator[Box]:
    """The boxes of at most `most` elements, in order, that a box consists of."""
    if box.size <= most:
        yield box
        return
    inner = Box(box.offset[1:], box.shape[1:])
    step = max(1, most // inner.size)
    for first in range(0, box.shape[0], step):
        count = min(step, box.shape[0] - first)
        for rest in cut(inner, most) if inner.size > most else (inner,):
            yield Box((box.offset[0] + first, *rest.offset), (count, *rest.shape))


def even_parts(tensors: Mapping[str, TensorInfo], files: int) -> list[list[Part]]:
    """All elements of all tensors in order, in `files` shares of as many bytes, to within an element."""
    total = sum(_size(info) for info in tensors.values())
    shares: list[list[Part]] = [[] for _ in range(files)]
    base = 0
    for name, info in sorted(tensors.items()):
        count, width = prod(info.shape), info.dtype.itemsize
        if not count:
            shares[0].append(Part(name, info, whole(info)))
        edges = [min(count, max(0, -(-(total * i // files - base) // width))) for i in range(files)] + [count]
        for share, start, stop in zip(shares, edges, edges[1:], strict=False):
            share += [Part(name, info, box) for box in boxes(start, stop, info.shape)]
        base += _size(info)
    return shares


def _size(info: TensorInfo) -> int:
    return prod(info.shape) * info.dtype.itemsize


def write_parts(
    target: Path,
    step: int,
    state: Mapping[str, JSON],
    files: Sequence[Iterable[Part]],
    read: Callable[[Part], Tensor],
    advance: Advance,
) -> None:
    """Writes the checkpoint `target`, a file for each list of parts, whose values `read` gives block by block.

    CannotWriteError when something is there already or it cannot be written; then nothing is left behind.
    """
    with new_folder(target) as aside:
        written = [_write_file(aside, number, parts, read, advance) for number, parts in enumerate(files)]
        write_manifest(aside, assemble(step, state, written))


def _write_file(
    folder: Path, number: int, parts: Iterable[Part], read: Callable[[Part], Tensor], advance: Advance
) -> dict[str, object]:
    def make(part: Part) -> Tensor:
        made = read(part)
        advance(part.box.size * part.info.dtype.itemsize)
        return made

    small = [Part(p.name, p.info, box) for p in parts for box in cut(p.box, BLOCK_BYTES // p.info.dtype.itemsize)]
    pending = [Pending(part.key, part.info.dtype, part.box.shape, partial(make, part)) for part in small]
    info = write_stream(folder / shard_name(number), pending)
    return {"name": info.name, "size": info.size, "hash": info.hash, "slices": [part.row for part in small]}


def reshard(source: Reader, target: Path, files: Sequence[Iterable[Part]], advance: Advance) -> None:
    """Writes all that `source` holds as the checkpoint `target`, cut into other files."""
    write_parts(target, source.step, source.state, files, lambda part: source.read(part.name, part.box), advance)


def average(sources: Sequence[Reader], target: Path, files: int, optimizer: bool, advance: Advance) -> None:
    """Writes the mean of the weights of several checkpoints of one model (computed in float64) as `target`.

    Step and state are the last one's, and with `optimizer` its other tensors too; without, it is a checkpoint of
    weights alone. DataError when the checkpoints do not hold the same weights.
    """
    last = sources[-1]
    for other in sources[:-1]:
        _refuse_other_weights(other, last)
    tensors = {name: info for name, info in last.tensors.items() if optimizer or name.startswith(WEIGHT)}
    state = dict(last.state) if optimizer else {**last.state, "weights_only": True}

    def read(part: Part) -> Tensor:
        if not part.name.startswith(WEIGHT):
            return last.read(part.name, part.box)
        total = torch.zeros(part.box.shape, dtype=torch.float64)
        for source in sources:
            total += source.read(part.name, part.box)
        return total.div_(len(sources)).to(part.info.dtype)

    write_parts(target, last.step, state, even_parts(tensors, files), read, advance)


def _refuse_other_weights(one: Reader, other: Reader) -> None:
    shapes = [{n: i.shape for n, i in r.tensors.items() if n.startswith(WEIGHT)} for r in (one, other)]
    different = sorted({n for n in shapes[0].keys() | shapes[1].keys() if shapes[0].get(n) != shapes[1].get(n)})
    if different:
        raise DataError(f"{one.path} and {other.path} are of different models: they differ in {different[0]}")
