"""Reads one safetensors file without trust in a byte of it: any part of any tensor, in blocks, into given memory.

The file is read, not mapped: one that is cut meanwhile is an error and not the end of the process.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
import orjson
import torch
from torch import Tensor

from megaswitch.checkpoint.folders import Source
from megaswitch.checkpoint.format import SAFETENSORS_NAMES
from megaswitch.params.boxes import Box
from megaswitch.utils.errors import DataError

MOST_HEADER_BYTES = 100_000_000
"""What the safetensors library reads at most, too."""
_BLOCK_BYTES = 16 << 20
_SHORT_BYTES = 32 << 10
"""Shorter runs are not worth a call of the system each: what lies between them is read too."""
_MOST_DIMS = 16
_MOST = 2**62
_DTYPES = {name: dtype for dtype, name in SAFETENSORS_NAMES.items()}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its elements, row-major, begin at byte `start`."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int


def read_header(source: Source, where: str) -> dict[str, Stored]:
    """The tensors of a file, all of which lie within it; DataError, which begins with `where`, when they do not."""
    if source.size < 8:
        raise DataError(f"{where}: {source.size} bytes are no safetensors file")
    length = int.from_bytes(_bytes(source, 0, 8), "little")
    if length > min(source.size - 8, MOST_HEADER_BYTES):
        raise DataError(f"{where}: its header would have {length} bytes; the file is damaged")
    try:
        header = orjson.loads(_bytes(source, 8, length))
    except (orjson.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where}: its header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise DataError(f"{where}: its header holds no object")
    header.pop("__metadata__", None)
    return {name: _stored(name, entry, 8 + length, source.size, where) for name, entry in header.items()}


def _stored(name: str, entry: Any, base: int, size: int, where: str) -> Stored:
    entry = entry if isinstance(entry, dict) else {}
    kind, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not (isinstance(kind, str) and kind in _DTYPES):
        raise DataError(f"{where}: {name[:80]!r} has an unknown dtype")
    if not (_are_counts(shape) and len(shape) <= _MOST_DIMS and _are_counts(offsets) and len(offsets) == 2):
        raise DataError(f"{where}: {name[:80]!r} has no sensible shape or place")
    start, stop = offsets
    if stop - start != prod(shape) * _DTYPES[kind].itemsize or base + stop > size:
        raise DataError(f"{where}: {name[:80]!r} is not within the file")
    return Stored(_DTYPES[kind], tuple(shape), base + start)


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < _MOST for value in values)


def _bytes(source: Source, offset: int, count: int) -> bytes:
    out = np.empty(count, dtype=np.uint8)
    source.read_into(offset, out)
    return out.tobytes()


def read_box(source: Source, stored: Stored, box: Box, out: Tensor) -> None:
    """The part `box` of a stored tensor into `out` of the box's shape: any strides, dtype or device."""
    if box.size == 0:
        return
    dim = max((d for d, n in enumerate(stored.shape) if box.shape[d] != n), default=0)
    run = prod(box.shape[dim:]) * stored.dtype.itemsize
    if dim > 0 and run < _SHORT_BYTES:
        _read_wide(source, stored, box, out, dim)
        return
    for index in product(*(range(n) for n in box.shape[:dim])):
        first = tuple(o + i for o, i in zip(box.offset, index, strict=False))
        _read_run(source, stored, _position(stored, (*first, *box.offset[dim:])), out[index])


def _read_wide(source: Source, stored: Stored, box: Box, out: Tensor, dim: int) -> None:
    """Whole rows of dimension `dim`, block by block, of which a part is kept."""
    shape = stored.shape
    row = prod(shape[dim:]) * stored.dtype.itemsize
    step = max(1, _BLOCK_BYTES // row)
    kept = slice(box.offset[dim], box.offset[dim] + box.shape[dim])
    for index in product(*(range(n) for n in box.shape[: dim - 1])):
        first = tuple(o + i for o, i in zip(box.offset, index, strict=False))
        for at in range(0, box.shape[dim - 1], step):
            count = min(step, box.shape[dim - 1] - at)
            block = torch.empty(count, *shape[dim:], dtype=stored.dtype)
            start = (*first, box.offset[dim - 1] + at, *(0 for _ in shape[dim:]))
            _read_run(source, stored, _position(stored, start), block)
            out[index][at : at + count] = block[:, kept]


def _position(stored: Stored, index: tuple[int, ...]) -> int:
    """The byte at which an element lies."""
    flat = 0
    for i, n in zip(index, stored.shape, strict=True):
        flat = flat * n + i
    return stored.start + flat * stored.dtype.itemsize


def _read_run(source: Source, stored: Stored, offset: int, out: Tensor) -> None:
    """Consecutive elements from byte `offset` on into `out`, directly where it can be."""
    if out.device.type == "cpu" and out.dtype == stored.dtype and out.is_contiguous():
        source.read_into(offset, as_bytes(out))
        return
    for part in blocks(out, _BLOCK_BYTES // stored.dtype.itemsize):
        block = torch.empty(part.shape, dtype=stored.dtype)
        source.read_into(offset, as_bytes(block))
        part.copy_(block)
        offset += block.numel() * block.element_size()


def as_bytes(tensor: Tensor) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """The memory of a contiguous tensor on the CPU."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy()


def blocks(tensor: Tensor, most: int) -> Iterator[Tensor]:
    """Views of a tensor, in the order of its elements, of at most `most` elements each."""
    if tensor.numel() <= most:
        yield tensor
        return
    row = tensor[0].numel()
    if row > most:
        for inner in tensor:
            yield from blocks(inner, most)
        return
    step = max(1, most // row)
    yield from (tensor[first : first + step] for first in range(0, len(tensor), step))
