"""Writes one safetensors file: streamed, hashed on the way, on the disk when the function returns.

The safetensors library builds a file in memory first; a shard may be as large as the memory that is left.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import orjson
import torch
import xxhash
from torch import Tensor

from megaswitch.checkpoint.format import DTYPES, SAFETENSORS_NAMES, FileInfo, as_hash

_CHUNK_BYTES = 64 << 20


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> FileInfo:
    """Writes the tensors (any device, any strides) to a new file and returns its name, size and hash.

    Raises OSError (FileExistsError when the file is there already) and ValueError for a dtype it cannot hold.
    """
    digest, size = xxhash.xxh3_128(), 0
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb", buffering=0) as file:
        for chunk in _chunks(tensors):
            write_all(file.fileno(), chunk)
            digest.update(chunk)
            size += len(chunk)
        os.fsync(file.fileno())
    return FileInfo(path.name, size, as_hash(digest))


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Writes everything: one call of the system may take less, as it does when the disk is nearly full."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def file_hash(path: Path) -> str:
    """The hash of a file's bytes as it stands in the manifest."""
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES // 8):
            digest.update(chunk)
    return as_hash(digest)


def _chunks(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The file's bytes in order: the header's length, the header, each tensor's elements."""
    for name, tensor in tensors.items():
        if tensor.dtype not in SAFETENSORS_NAMES:
            raise ValueError(f"{name} is {tensor.dtype}; a checkpoint holds {', '.join(DTYPES)}")
    # Wide elements first, so that each tensor begins at a multiple of its element's size.
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, dict[str, object]] = {}
    end = 0
    for name in ordered:
        x, start = tensors[name], end
        end = start + x.numel() * x.element_size()
        header[name] = {"dtype": SAFETENSORS_NAMES[x.dtype], "shape": list(x.shape), "data_offsets": [start, end]}
    text = orjson.dumps(header)
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in ordered:
        raw = tensors[name].detach().reshape(-1).contiguous()
        step = _CHUNK_BYTES // raw.element_size()
        for start in range(0, raw.numel(), step):  # in parts, so that no whole copy of a GPU's tensor is made here
            yield raw[start : start + step].cpu().view(torch.uint8).numpy().data
