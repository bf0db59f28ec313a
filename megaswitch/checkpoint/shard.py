"""Writes one safetensors file: streamed, hashed on the way, on the disk when the function returns.

The safetensors library builds a file in memory first; a shard may be as large as the memory that is left.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import orjson
import torch
import xxhash
from torch import Tensor

from megaswitch.checkpoint.folders import Folder, folder_at
from megaswitch.checkpoint.format import DTYPES, SAFETENSORS_NAMES, FileInfo, as_hash
from megaswitch.checkpoint.places import Place

_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class Pending:
    """A tensor to be written: what the file's header says of it, and how it is made when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        """Size on the disk."""
        return prod(self.shape) * self.dtype.itemsize


def write_stream(path: Place, tensors: Sequence[Pending]) -> FileInfo:
    """Writes a new file and returns its name, size and hash; beside the tensor in hand only a block is in memory.

    Raises OSError (FileExistsError when the file is there already) and ValueError for a dtype it cannot hold.
    """
    digest, size = xxhash.xxh3_128(), 0
    with folder_at(path.parent).sink(path.name) as write:
        for chunk in _chunks(tensors):
            write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return FileInfo(path.name, size, as_hash(digest))


def write_shard(path: Place, tensors: Mapping[str, Tensor]) -> FileInfo:
    """`write_stream` of tensors that are there (any device, any strides), in the order of their names."""
    return write_stream(path, [_present(name, tensors[name].detach()) for name in sorted(tensors)])


def _present(name: str, tensor: Tensor) -> Pending:
    return Pending(name, tensor.dtype, tuple(tensor.shape), lambda: tensor)


def file_hash(folder: Folder, name: str, advance: Callable[[int], None] = lambda count: None) -> str:
    """The hash of a file's bytes as it stands in the manifest; `advance` hears of bytes read."""
    digest, source = xxhash.xxh3_128(), folder.source(name)
    block = np.empty(min(_CHUNK_BYTES, source.size), dtype=np.uint8)
    for start in range(0, source.size, _CHUNK_BYTES):
        part = block[: source.size - start]
        source.read_into(start, part)
        digest.update(part.data)
        advance(len(part))
    return as_hash(digest)


def shard_size(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the file that `write_shard` would make; the tensors need not have any elements."""
    pending = [_present(name, tensors[name]) for name in sorted(tensors)]
    return len(_header(_in_order(pending))) + sum(tensor.num_bytes for tensor in pending)


def _in_order(tensors: Sequence[Pending]) -> list[Pending]:
    """Wide elements first, so that each tensor begins at a multiple of its element's size."""
    for tensor in tensors:
        if tensor.dtype not in SAFETENSORS_NAMES:
            raise ValueError(f"{tensor.name} is {tensor.dtype}; a checkpoint holds {', '.join(DTYPES)}")
    return sorted(tensors, key=lambda t: -t.dtype.itemsize)


def _header(ordered: Sequence[Pending]) -> bytes:
    """What the file begins with: the header's length and the header."""
    header: dict[str, Mapping[str, object]] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        start, end = end, end + tensor.num_bytes
        name = SAFETENSORS_NAMES[tensor.dtype]
        header[tensor.name] = {"dtype": name, "shape": tensor.shape, "data_offsets": [start, end]}
    text = orjson.dumps(header)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _chunks(tensors: Sequence[Pending]) -> Iterator[bytes | memoryview]:
    """The file's bytes in order: its header, each tensor's elements."""
    ordered = _in_order(tensors)
    yield _header(ordered)
    for tensor in ordered:
        yield from _blocks(tensor)


def _blocks(pending: Pending) -> Iterator[memoryview]:
    """A tensor's bytes in parts, so that no whole copy of it is made here."""
    made = pending.make()
    assert tuple(made.shape) == pending.shape, pending.name
    rows = made.reshape(-1, made.shape[-1]) if made.dim() > 1 else made.reshape(-1, 1)
    step = max(1, _CHUNK_BYTES // max(1, rows.shape[1] * pending.dtype.itemsize))
    for first in range(0, rows.shape[0], step):
        block = rows[first : first + step].to(pending.dtype).contiguous().cpu()
        yield block.view(torch.uint8).numpy().reshape(-1).data
