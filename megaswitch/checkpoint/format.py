"""What a checkpoint is on disk.

A folder `step-00001000` with shards (`shard-00000.safetensors`, one a rank, tensors only) and `manifest.json`:

    {"checksum": "xxh3-128:<hex>", "manifest": {
        "format": 1, "step": 1000, "state": {...},
        "files":   [{"name": ..., "size": bytes, "hash": "xxh3-128:<hex>"}, ...],
        "tensors": {name: {"dtype": ..., "shape": [...], "slices": [[file, key, offset, shape], ...]}}}}

`file` is an index into files, `key` the tensor's name in that shard, offset and shape say where the slice lies in
the global tensor. The checksum is over the bytes of the inner object as they stand in the file (`manifest.py`).
There is no rank and no layout in it. A folder without a valid manifest is no checkpoint.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
import xxhash
from torch import Tensor

from megaswitch.params.boxes import Box

JSON: TypeAlias = "Mapping[str, JSON] | list[JSON] | str | int | float | bool | None"

FORMAT = 1
MANIFEST = "manifest.json"
_FILE = re.compile(r"shard-\d{5,}\.safetensors", re.ASCII)
_STEP = re.compile(r"step-(\d{8,18})", re.ASCII)
SAFETENSORS_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What a tensor may hold, as safetensors calls it."""
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in SAFETENSORS_NAMES}
"""The same, by the names of the manifest."""


@dataclass(frozen=True)
class Piece:
    """A part of a named global tensor that this rank holds.

    Args:
        name: name of the global tensor, the same on any layout, such as "weight/encoder.blocks.0.attention.q".
        global_shape: shape of the whole tensor.
        box: where the part lies.
        tensor: the part, of the box's shape, on any device.
    """

    name: str
    global_shape: tuple[int, ...]
    box: Box
    tensor: Tensor


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a global tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Slice:
    """Where one part of a global tensor is stored: file name, key in that file, place in the tensor."""

    file: str
    key: str
    box: Box


@dataclass(frozen=True)
class FileInfo:
    """A shard: name, bytes, and hash as "xxh3-128:<hex>"."""

    name: str
    size: int
    hash: str


@dataclass(frozen=True)
class Manifest:
    """Everything about a checkpoint but its tensors' values; the fields are those of the module's docstring."""

    step: int
    state: Mapping[str, JSON]
    files: dict[str, FileInfo]
    tensors: dict[str, TensorInfo]
    slices: dict[str, list[Slice]] = field(default_factory=dict)


def step_name(step: int) -> str:
    """Name of a step's folder."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step of a committed checkpoint's folder name; None for any other name."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match and step_name(int(match[1])) == name else None


def shard_name(rank: int) -> str:
    """Name of the file that a rank writes."""
    return f"shard-{rank:05d}.safetensors"


def is_shard_name(name: str) -> bool:
    """Whether a file is named as a shard is."""
    return bool(_FILE.fullmatch(name))


def as_hash(digest: "xxhash.xxh3_128") -> str:
    """A digest as it stands in the manifest."""
    return f"xxh3-128:{digest.hexdigest()}"
