"""manifest.json as bytes: written, and read without trust in a single one of them."""

import re
from typing import Any

import orjson
import xxhash

from megaswitch.checkpoint.cover import trouble_with_cover
from megaswitch.checkpoint.folders import folder_at, read_whole
from megaswitch.checkpoint.format import (
    DTYPES,
    FORMAT,
    MANIFEST,
    FileInfo,
    Manifest,
    Slice,
    TensorInfo,
    is_shard_name,
)
from megaswitch.checkpoint.places import Place
from megaswitch.params.boxes import Box
from megaswitch.utils.errors import DataError

MOST_BYTES = 1 << 29
"""Larger files are not even read."""
_MOST_DIMS = 16
_MOST = 2**62
_HEAD = b'{"checksum":"xxh3-128:'
_MIDDLE = b'","manifest":'
_TAIL = b"}\n"
_HASH = re.compile(r"xxh3-128:[0-9a-f]{32}", re.ASCII)


def encode(manifest: Manifest) -> bytes:
    """The bytes of manifest.json. ValueError when the state is not plain JSON (a NaN, a tuple)."""
    index = {name: i for i, name in enumerate(manifest.files)}
    tensors = {
        name: {
            "dtype": str(info.dtype).removeprefix("torch."),
            "shape": info.shape,
            "slices": [[index[s.file], s.key, s.box.offset, s.box.shape] for s in manifest.slices[name]],
        }
        for name, info in manifest.tensors.items()
    }
    files = [{"name": f.name, "size": f.size, "hash": f.hash} for f in manifest.files.values()]
    if orjson.loads(orjson.dumps(manifest.state)) != manifest.state:
        raise ValueError("the state to save is not plain JSON: dictionaries, lists, texts and finite numbers")
    inner = {"format": FORMAT, "step": manifest.step, "state": manifest.state, "files": files, "tensors": tensors}
    body = orjson.dumps(inner)
    return _HEAD + xxhash.xxh3_128(body).hexdigest().encode() + _MIDDLE + body + _TAIL


def decode(data: bytes, where: str) -> Manifest:
    """The manifest in these bytes; DataError, which begins with `where`, for anything that `encode` would not write."""
    try:
        return _manifest(_body(data))
    except _Malformed as bad:
        raise DataError(f"{where}: {bad}") from None


class _Malformed(Exception):
    """What is wrong with a manifest (internal: it becomes a DataError)."""


def _need(condition: bool, trouble: str) -> None:
    if not condition:
        raise _Malformed(trouble)


def _body(data: bytes) -> dict[str, Any]:
    start = len(_HEAD) + 32 + len(_MIDDLE)
    _need(data.startswith(_HEAD) and data[:start].endswith(_MIDDLE) and data.endswith(_TAIL), "is no whole manifest")
    body = data[start : -len(_TAIL)]
    told = data[len(_HEAD) : len(_HEAD) + 32]
    _need(xxhash.xxh3_128(body).hexdigest().encode() == told, "its checksum is wrong: the manifest is damaged")
    try:
        inner = orjson.loads(body)
    except (orjson.JSONDecodeError, RecursionError) as error:
        raise _Malformed(f"is not JSON: {error}") from None
    _need(isinstance(inner, dict), "holds no object")
    version = inner.get("format")
    _need(type(version) is int, "has no format number")
    _need(version == FORMAT, f"has format {version}; this version of megaswitch reads {FORMAT}")
    return dict(inner)


def _manifest(inner: dict[str, Any]) -> Manifest:
    for key, kind in (("state", dict), ("files", list), ("tensors", dict)):
        _need(isinstance(inner.get(key), kind), f"{key} is missing or of the wrong type")
    files = [_file(entry) for entry in inner["files"]]
    by_name = {f.name: f for f in files}
    _need(len(by_name) == len(files), "a file is listed twice")
    manifest = Manifest(_count(inner.get("step"), "step"), inner["state"], by_name, {}, {})
    held = dict.fromkeys(by_name, 0)
    for name, entry in inner["tensors"].items():
        _need(isinstance(entry, dict) and isinstance(entry.get("slices"), list), f"tensor {name} is malformed")
        _need(isinstance(entry.get("dtype"), str) and entry["dtype"] in DTYPES, f"tensor {name} has an unknown dtype")
        info = TensorInfo(_counts(entry.get("shape"), f"shape of {name}"), DTYPES[entry["dtype"]])
        slices = [_slice(part, files, name) for part in entry["slices"]]
        trouble = trouble_with_cover([s.box for s in slices], info.shape)
        _need(not trouble, f"tensor {name}: {trouble}")
        for s in slices:
            held[s.file] += s.box.size * info.dtype.itemsize
        manifest.tensors[name], manifest.slices[name] = info, slices
    # So that nobody allocates for tensors which cannot be there.
    full = next((f for f in files if held[f.name] > f.size), None)
    _need(full is None, f"{full and full.name} is said to hold more than its size")
    return manifest


def _file(entry: object) -> FileInfo:
    _need(isinstance(entry, dict), "a file's entry is malformed")
    assert isinstance(entry, dict)
    name, told = entry.get("name"), entry.get("hash")
    # The name is a shard's or none: no path, no parent folder, nothing that leads elsewhere.
    _need(isinstance(name, str) and is_shard_name(name), f"{str(name)[:80]!r} is no name of a shard")
    _need(isinstance(told, str) and bool(_HASH.fullmatch(told)), f"{name} has no valid hash")
    return FileInfo(str(name), _count(entry.get("size"), f"size of {name}"), str(told))


def _slice(part: object, files: list[FileInfo], name: str) -> Slice:
    _need(isinstance(part, list) and len(part) == 4 and isinstance(part[1], str), f"a slice of {name} is malformed")
    assert isinstance(part, list)
    index = _count(part[0], f"file of {name}")
    _need(index < len(files), f"a slice of {name} is in a file that is not listed")
    box = Box(_counts(part[2], f"offset of {name}"), _counts(part[3], f"slice of {name}"))
    return Slice(files[index].name, part[1], box)


def _count(value: object, what: str) -> int:
    _need(type(value) is int and 0 <= value < _MOST, f"{what} is no sensible number")
    assert isinstance(value, int)
    return value


def _counts(value: object, what: str) -> tuple[int, ...]:
    _need(isinstance(value, list) and len(value) <= _MOST_DIMS, f"{what} is no list of numbers")
    assert isinstance(value, list)
    return tuple(_count(n, what) for n in value)


def read_manifest(folder: Place) -> Manifest:
    """The manifest of a checkpoint's folder; DataError when there is none that is whole."""
    path = folder / MANIFEST
    try:
        data = read_whole(folder_at(folder), MANIFEST, MOST_BYTES)
    except OSError as error:
        trouble = error.strerror or str(error)
        raise DataError(f"{path}: cannot be read ({trouble}); the folder is no complete checkpoint") from None
    return decode(data, str(path))
