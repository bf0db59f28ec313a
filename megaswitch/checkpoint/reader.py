"""Reads a checkpoint: any part of any tensor, whatever layout wrote it."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megaswitch.checkpoint.cover import intersection, is_inside
from megaswitch.checkpoint.format import JSON, Manifest, Slice, TensorInfo, is_shard_name
from megaswitch.checkpoint.manifest import read_manifest
from megaswitch.checkpoint.shard import file_hash
from megaswitch.params.boxes import Box
from megaswitch.utils.errors import DataError

_MOST_OPEN = 32


class Reader:
    """A verified checkpoint.

    Opening one checks the manifest's checksum and structure, that every tensor is wholly there, and every
    file's size; with `verify` also every file's hash. DataError names the file that is wrong.
    """

    def __init__(self, path: Path, verify: bool = True) -> None:
        self.path = Path(path)
        self._manifest = check(self.path)
        if verify:
            check_hashes(self.path, self._manifest)
        self._open: OrderedDict[str, Any] = OrderedDict()

    @property
    def step(self) -> int:
        """The step after which it was saved."""
        return self._manifest.step

    @property
    def state(self) -> Mapping[str, JSON]:
        """What was saved beside the tensors."""
        return self._manifest.state

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Shape and dtype of every global tensor, by name."""
        return self._manifest.tensors

    def read(self, name: str, box: Box, dtype: torch.dtype | None = None) -> Tensor:
        """The part `box` of a global tensor, on the CPU, in its stored dtype unless another is asked for.

        DataError when there is no such tensor, or the box is not within it.
        """
        info = self.tensors.get(name)
        if info is None:
            raise DataError(f"{self.path}: there is no tensor {name}; the checkpoint is of another model or optimizer")
        if not is_inside(box, info.shape):
            raise DataError(
                f"{self.path}: {name} has shape {list(info.shape)}; the part at {list(box.offset)} of shape "
                f"{list(box.shape)} is not within it: the checkpoint is of another model"
            )
        out = torch.empty(box.shape, dtype=dtype or info.dtype)
        found = 0
        for part in self._manifest.slices[name]:
            shared = intersection(part.box, box)
            if shared is not None:
                out[_inside(shared, box)] = self._load(part, _inside(shared, part.box), info)
                found += shared.size
        if found != box.size:
            raise DataError(f"{self.path}: {name}: {found} of {box.size} elements are there")
        return out

    def read_all(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A whole global tensor; see `read`."""
        shape = self.tensors[name].shape if name in self.tensors else ()
        return self.read(name, Box((0,) * len(shape), shape), dtype)

    def _load(self, part: Slice, where: tuple[slice, ...], info: TensorInfo) -> Tensor:
        try:
            stored: Tensor = self._file(part.file).get_slice(part.key)[where] if where else self._whole(part)
        except (SafetensorError, OSError) as error:
            raise DataError(f"{self.path / part.file}: cannot read {part.key}: {error}") from None
        expected = tuple(s.stop - s.start for s in where)
        if stored.dtype != info.dtype or stored.shape != expected:
            raise DataError(f"{self.path / part.file}: {part.key} is not what the manifest says")
        return stored

    def _whole(self, part: Slice) -> Tensor:
        tensor: Tensor = self._file(part.file).get_tensor(part.key)
        return tensor

    def _file(self, name: str) -> Any:
        """The file, mapped; only some are kept so, for there may be more than a process may have open."""
        if name not in self._open:
            if len(self._open) >= _MOST_OPEN:
                self._open.popitem(last=False)
            self._open[name] = safe_open(str(self.path / name), framework="pt")
        return self._open[name]


def check(folder: Path) -> Manifest:
    """The manifest of a folder whose files all have the right size; DataError says what is wrong."""
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such checkpoint")
    manifest = read_manifest(folder)
    for info in manifest.files.values():
        path = folder / info.name
        if path.is_symlink() or not path.is_file():
            raise DataError(f"{path}: the file is missing; restore it or use another checkpoint")
        if path.stat().st_size != info.size:
            raise DataError(f"{path}: has {path.stat().st_size} bytes and should have {info.size}")
    extra = next((p for p in folder.iterdir() if is_shard_name(p.name) and p.name not in manifest.files), None)
    if extra is not None:
        raise DataError(f"{extra}: does not belong to this checkpoint; two checkpoints may have been mixed")
    return manifest


def check_hashes(folder: Path, manifest: Manifest, rank: int = 0, world: int = 1) -> None:
    """Compares the hashes of every `world`-th file from `rank` on; DataError names the first that is damaged."""
    for info in list(manifest.files.values())[rank::world]:
        try:
            found = file_hash(folder / info.name)
        except OSError as error:
            raise DataError(f"{folder / info.name}: cannot be read ({error.strerror})") from None
        if found != info.hash:
            raise DataError(f"{folder / info.name}: its bytes are damaged ({found}, should be {info.hash})")


def _inside(inner: Box, outer: Box) -> tuple[slice, ...]:
    return tuple(
        slice(o - base, o - base + n) for o, n, base in zip(inner.offset, inner.shape, outer.offset, strict=True)
    )
