"""Writes safetensors files of tensors that are made one at a time, and folders that exist whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import orjson
import torch
import xxhash
from torch import Tensor

from megaswitch.checkpoint.format import SAFETENSORS_NAMES, FileInfo, as_hash
from megaswitch.checkpoint.shard import write_all
from megaswitch.checkpoint.store import commit, sync_folder
from megaswitch.utils.errors import CannotWriteError

MOST_FILE_BYTES = 5 * 10**9
"""Files are closed before they grow beyond this; a larger tensor has a file of its own."""
_BLOCK_BYTES = 16 << 20


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


def into_files(tensors: Iterable[Pending], most_bytes: int) -> list[list[Pending]]:
    """Consecutive tensors, file by file."""
    files: list[list[Pending]] = []
    size = 0
    for tensor in tensors:
        if not files or size + tensor.num_bytes > most_bytes:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += tensor.num_bytes
    return files


def write_stream(path: Path, tensors: Sequence[Pending]) -> FileInfo:
    """Writes one file and returns its name, size and hash; beside the tensor in hand only a block is in memory."""
    digest, size = xxhash.xxh3_128(), 0
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb", buffering=0) as file:
        for chunk in _chunks(tensors):
            write_all(file.fileno(), chunk)
            digest.update(chunk)
            size += len(chunk)
        os.fsync(file.fileno())
    return FileInfo(path.name, size, as_hash(digest))


def _chunks(tensors: Sequence[Pending]) -> Iterator[bytes | memoryview]:
    # Wide elements first, so that each tensor begins at a multiple of its element's size.
    ordered = sorted(tensors, key=lambda t: -t.dtype.itemsize)
    header: dict[str, Mapping[str, object]] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        start, end = end, end + tensor.num_bytes
        name = SAFETENSORS_NAMES[tensor.dtype]
        header[tensor.name] = {"dtype": name, "shape": tensor.shape, "data_offsets": [start, end]}
    text = orjson.dumps(header)
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in ordered:
        yield from _blocks(tensor)


def _blocks(pending: Pending) -> Iterator[memoryview]:
    made = pending.make()
    assert tuple(made.shape) == pending.shape, pending.name
    rows = made.reshape(-1, made.shape[-1]) if made.dim() > 1 else made.reshape(-1, 1)
    step = max(1, _BLOCK_BYTES // max(1, rows.shape[1] * pending.dtype.itemsize))
    for first in range(0, rows.shape[0], step):
        block = rows[first : first + step].to(pending.dtype).contiguous()
        yield block.view(torch.uint8).numpy().reshape(-1).data


def write_json(path: Path, value: object) -> None:
    """Writes a small file of indented JSON."""
    with open(path, "xb") as file:
        file.write(orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `target` when the block ends, and is gone when it fails.

    CannotWriteError when something is at `target` already, or nothing can be written there.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise CannotWriteError(f"{target} is there already; choose another name, or move it away")
    aside = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex}")
    try:
        aside.mkdir(parents=True)
        yield aside
        sync_folder(aside)
        commit(aside, target)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CannotWriteError(f"cannot write {target}: {error.strerror or error}; choose another folder") from error
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
