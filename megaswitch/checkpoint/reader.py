"""Reads a checkpoint: any part of any tensor, whatever layout wrote it."""

from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from megaswitch.checkpoint.cover import intersection, is_inside
from megaswitch.checkpoint.folders import Source, folder_at
from megaswitch.checkpoint.format import JSON, MANIFEST, Manifest, Slice, TensorInfo, is_shard_name
from megaswitch.checkpoint.manifest import read_manifest
from megaswitch.checkpoint.places import Place
from megaswitch.checkpoint.shard import file_hash
from megaswitch.checkpoint.shard_reader import Stored, read_box, read_header
from megaswitch.params.boxes import Box
from megaswitch.utils.errors import DataError

_MOST_OPEN = 32


class Reader:
    """A verified checkpoint.

    Opening one checks the manifest's checksum and structure, that every tensor is wholly there, and every
    file's size; with `verify` also every file's hash. DataError names the file that is wrong.
    """

    def __init__(self, path: Place, verify: bool = True) -> None:
        self.path = path
        self._manifest = check(path)
        if verify:
            check_hashes(path, self._manifest)
        self._open: OrderedDict[str, tuple[Source, dict[str, Stored]]] = OrderedDict()

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
        info = self._info(name, box)
        out = torch.empty(box.shape, dtype=dtype or info.dtype)
        self.read_into(name, box, out)
        return out

    def read_into(self, name: str, box: Box, out: Tensor) -> None:
        """`read` into `out`, of the box's shape: any strides, dtype or device. Beside it only a block is in memory."""
        info = self._info(name, box)
        found = 0
        for part in self._manifest.slices[name]:
            shared = intersection(part.box, box)
            if shared is not None:
                self._load(part, info, _relative(shared, part.box), out[_relative(shared, box).slices])
                found += shared.size
        if found != box.size:
            raise DataError(f"{self.path}: {name}: {found} of {box.size} elements are there")

    def read_all(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A whole global tensor; see `read`."""
        shape = self.tensors[name].shape if name in self.tensors else ()
        return self.read(name, Box((0,) * len(shape), shape), dtype)

    def _info(self, name: str, box: Box) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            raise DataError(f"{self.path}: there is no tensor {name}; the checkpoint is of another model or optimizer")
        if not is_inside(box, info.shape):
            raise DataError(
                f"{self.path}: {name} has shape {list(info.shape)}; the part at {list(box.offset)} of shape "
                f"{list(box.shape)} is not within it: the checkpoint is of another model"
            )
        return info

    def _load(self, part: Slice, info: TensorInfo, box: Box, out: Tensor) -> None:
        """The part `box` of a stored slice."""
        where = self.path / part.file
        try:
            source, header = self._file(part.file)
            stored = header.get(part.key)
            if stored is None or stored.dtype != info.dtype or stored.shape != part.box.shape:
                raise DataError(f"{where}: {part.key} is not what the manifest says")
            read_box(source, stored, box, out)
        except OSError as error:
            raise DataError(f"{where}: cannot read {part.key}: {error.strerror or error}") from None

    def _file(self, name: str) -> tuple[Source, dict[str, Stored]]:
        """The file, opened; only some are kept so, for there may be more than a process may have open."""
        if name not in self._open:
            if len(self._open) >= _MOST_OPEN:
                self._open.popitem(last=False)
            source = folder_at(self.path).source(name)
            self._open[name] = source, read_header(source, str(self.path / name))
        return self._open[name]


def check(folder: Place) -> Manifest:
    """The manifest of a folder whose files all have the right size; DataError says what is wrong."""
    try:
        sizes = folder_at(folder).sizes()
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error})") from None
    if not sizes:
        raise DataError(f"{folder}: there is no such checkpoint (no {MANIFEST} there)")
    manifest = read_manifest(folder)
    for info in manifest.files.values():
        path = folder / info.name
        if info.name not in sizes:
            raise DataError(f"{path}: the file is missing; restore it or use another checkpoint")
        if sizes[info.name] != info.size:
            raise DataError(f"{path}: has {sizes[info.name]} bytes and should have {info.size}")
    extra = next((name for name in sorted(sizes) if is_shard_name(name) and name not in manifest.files), None)
    if extra is not None:
        raise DataError(f"{folder / extra}: does not belong to this checkpoint; two checkpoints may have been mixed")
    return manifest


def check_hashes(
    folder: Place,
    manifest: Manifest,
    rank: int = 0,
    world: int = 1,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Compares the hashes of every `world`-th file from `rank` on; DataError names the first that is damaged.

    `advance` hears of bytes read.
    """
    for info in list(manifest.files.values())[rank::world]:
        try:
            found = file_hash(folder_at(folder), info.name, advance)
        except OSError as error:
            raise DataError(f"{folder / info.name}: cannot be read ({error.strerror or error})") from None
        if found != info.hash:
            raise DataError(f"{folder / info.name}: its bytes are damaged ({found}, should be {info.hash})")


def _relative(inner: Box, outer: Box) -> Box:
    """A box that lies in `outer`, in coordinates of it."""
    return Box(tuple(a - b for a, b in zip(inner.offset, outer.offset, strict=True)), inner.shape)
