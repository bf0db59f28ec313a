"""Saves a checkpoint: written aside by all ranks, checked, then renamed into place by the first.

If any rank cannot do its part, all of them raise the same CannotWriteError and nothing is left behind.
"""

import logging
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import orjson
import torch.distributed as dist

from megaswitch.checkpoint.cover import is_inside, trouble_with_cover
from megaswitch.checkpoint.format import (
    DTYPES,
    JSON,
    MANIFEST,
    FileInfo,
    Manifest,
    Piece,
    Slice,
    TensorInfo,
    shard_name,
    step_name,
)
from megaswitch.checkpoint.manifest import encode
from megaswitch.checkpoint.reader import Reader
from megaswitch.checkpoint.shard import write_all, write_shard
from megaswitch.comm.messages import broadcast_bytes, gather_bytes
from megaswitch.params.boxes import Box
from megaswitch.utils.errors import CannotWriteError, DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opening:
    """How a save begins, as the first rank tells the others.

    Args:
        folder: name of the folder to write into; empty when there is nothing to do.
        error: why nothing can be written; empty when something can.
    """

    folder: str = ""
    error: str = ""


def save(
    root: Path, step: int, pieces: Iterable[Piece], state: Mapping[str, JSON], group: dist.ProcessGroup | None
) -> Path:
    """Writes the checkpoint of a step below `root` and returns its folder once it is complete and on the disk.

    Every rank of `group` (with a CPU backend, used by nothing else meanwhile; None for one process) calls this
    with its own pieces, which together are every tensor once; a piece that several ranks hold alike may be given
    by any of them or by all. `state` (plain JSON) is the first rank's. A valid checkpoint of the same step stays
    as it is: the call then does nothing but say so. A damaged one is moved aside.

    Raises CannotWriteError on every rank when any of them fails.
    """
    rank = 0 if group is None else dist.get_rank(group)
    begun = _begin(Path(root), step) if rank == 0 else Opening()
    begun = Opening(**orjson.loads(broadcast_bytes(orjson.dumps(begun), group)))
    if begun.error:
        raise CannotWriteError(begun.error)
    final = Path(root) / step_name(step)
    if not begun.folder:
        return final
    folder = Path(root) / begun.folder
    reports = gather_bytes(_write_part(folder, rank, pieces), group)
    error = _finish(folder, final, step, state, reports) if rank == 0 else ""
    error = broadcast_bytes(error.encode(), group).decode()
    if error:
        raise CannotWriteError(error)
    return final


def _begin(root: Path, step: int) -> Opening:
    final = root / step_name(step)
    try:
        root.mkdir(parents=True, exist_ok=True)
        if final.exists() and _is_whole(final):
            log.warning("%s is complete already and stays as it is", final)
            return Opening()
        folder = f"{final.name}.tmp-{uuid.uuid4().hex}"
        (root / folder).mkdir()
        return Opening(folder)
    except OSError as error:
        return Opening(error=f"cannot save below {root}: {error.strerror}; choose another folder or make it writable")
    except Exception as error:  # the other ranks wait for an answer
        return Opening(error=f"cannot save below {root}: {type(error).__name__}: {error}")


def _is_whole(final: Path) -> bool:
    """Whether a checkpoint verifies; one that does not is moved aside, out of the way of its successor."""
    try:
        Reader(final)
    except DataError as bad:
        aside = final.with_name(f"{final.name}.bad-{uuid.uuid4().hex}")
        log.warning("moving a damaged checkpoint aside as %s: %s", aside.name, bad)
        final.rename(aside)
        return False
    return True


def _write_part(folder: Path, rank: int, pieces: Iterable[Piece]) -> bytes:
    """Writes this rank's shard; as JSON what it holds, or {"error": why not}: nothing is raised, the others wait."""
    try:
        mine = {}
        for piece in pieces:
            _check_piece(piece)
            if piece.box.size == 0 and prod(piece.global_shape) > 0:
                continue
            mine[f"{piece.name}@{','.join(map(str, piece.box.offset))}"] = piece
        _check_space(folder, sum(p.tensor.numel() * p.tensor.element_size() for p in mine.values()))
        info = write_shard(folder / shard_name(rank), {key: p.tensor for key, p in mine.items()})
        slices = [_row(key, piece) for key, piece in mine.items()]
        return orjson.dumps({"name": info.name, "size": info.size, "hash": info.hash, "slices": slices})
    except OSError as failure:
        error = f"rank {rank} cannot write {folder / shard_name(rank)}: {failure.strerror or failure}"
    except Exception as failure:  # whatever it is, the other ranks must hear of it
        error = f"rank {rank} cannot save: {type(failure).__name__}: {failure}"
    return orjson.dumps({"error": error.encode(errors="replace").decode()})


def _row(key: str, piece: Piece) -> list[object]:
    dtype = str(piece.tensor.dtype).removeprefix("torch.")
    return [piece.name, dtype, list(piece.global_shape), key, list(piece.box.offset), list(piece.box.shape)]


def _check_piece(piece: Piece) -> None:
    if tuple(piece.tensor.shape) != piece.box.shape or not is_inside(piece.box, piece.global_shape):
        raise ValueError(
            f"{piece.name}: a tensor of shape {list(piece.tensor.shape)} does not fill the part at "
            f"{list(piece.box.offset)} of shape {list(piece.box.shape)} of {list(piece.global_shape)}"
        )


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(0, f"{needed} bytes are needed and {free} are free; free some space or set checkpoint.keep lower")


def _finish(folder: Path, final: Path, step: int, state: Mapping[str, JSON], reports: list[bytes]) -> str:
    """Commits what the ranks have written; empty, or why it could not be (then the folder is gone)."""
    try:
        parts = [orjson.loads(report) for report in reports]
        error = next((str(part["error"]) for part in parts if "error" in part), "")
        if not error:
            write_manifest(folder, assemble(step, state, parts))
            commit(folder, final)
            return ""
    except OSError as failure:
        error = f"cannot write {folder}: {failure.strerror or failure}"
    except Exception as failure:  # the other ranks wait for an answer
        error = f"cannot save: {type(failure).__name__}: {failure}"
    shutil.rmtree(folder, ignore_errors=True)
    return error


def assemble(step: int, state: Mapping[str, JSON], parts: Iterable[Mapping[str, Any]]) -> Manifest:
    """The manifest of what all ranks wrote. ValueError unless it is every element of every tensor once."""
    manifest = Manifest(step, state, {}, {}, {})
    for part in parts:
        file = FileInfo(part["name"], part["size"], part["hash"])
        manifest.files[file.name] = file
        for name, dtype, global_shape, key, offset, shape in part["slices"]:
            info = TensorInfo(tuple(global_shape), DTYPES[dtype])
            if manifest.tensors.setdefault(name, info) != info:
                raise ValueError(f"{name}: ranks differ in its shape or dtype ({manifest.tensors[name]}, {info})")
            manifest.slices.setdefault(name, []).append(Slice(file.name, key, Box(tuple(offset), tuple(shape))))
    for name, slices in manifest.slices.items():
        manifest.slices[name] = list({s.box: s for s in reversed(slices)}.values())  # of copies, the first rank's
        trouble = trouble_with_cover([s.box for s in manifest.slices[name]], manifest.tensors[name].shape)
        if trouble:
            raise ValueError(f"{name}: {trouble} (shape {list(manifest.tensors[name].shape)})")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes manifest.json and sees to it that it and the folder's entries are on the disk."""
    descriptor = os.open(folder / MANIFEST, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        write_all(descriptor, encode(manifest))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_folder(folder)


def commit(folder: Path, final: Path) -> None:
    """Makes a written folder the checkpoint `final`: from here on it exists."""
    folder.rename(final)
    sync_folder(final.parent)


def sync_folder(folder: Path) -> None:
    """Has the entries of a folder written to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
