"""Saves a checkpoint: written aside by all ranks, checked, then given its name by the first.

If any rank cannot do its part, all of them raise the same CannotWriteError and nothing is left behind.
"""

import errno
import logging
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any

import orjson
import torch.distributed as dist

from megaswitch.checkpoint.cover import is_inside, trouble_with_cover
from megaswitch.checkpoint.folders import folder_at
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
from megaswitch.checkpoint.places import Place
from megaswitch.checkpoint.reader import Reader
from megaswitch.checkpoint.shard import shard_size, write_shard
from megaswitch.comm.messages import broadcast_bytes, gather_bytes
from megaswitch.params.boxes import Box
from megaswitch.utils.errors import CannotWriteError, DataError, StorageError

log = logging.getLogger(__name__)


_PASSING = {errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT, errno.ESTALE, errno.ECONNRESET}
"""What a file system may say today and not tomorrow."""
_PAUSES = (1.0, 3.0)
"""Seconds before a shard is written once more."""
_MANIFEST_BYTES = 1 << 20


@dataclass(frozen=True)
class Opening:
    """How a save begins, as the first rank tells the others.

    Args:
        folder: name of the folder to write into; empty when there is nothing to do.
        error: why nothing can be written; empty when something can.
    """

    folder: str = ""
    error: str = ""


@dataclass(frozen=True)
class _Trouble:
    """Why a save failed, empty when it did not, and whether the file system goes on failing."""

    error: str = ""
    failing: bool = False


def save(
    root: Place, step: int, pieces: Iterable[Piece], state: Mapping[str, JSON], group: dist.ProcessGroup | None
) -> Place:
    """Writes the checkpoint of a step below `root` and returns its place once it is complete and on the disk.

    Every rank of `group` (with a CPU backend, used by nothing else meanwhile; None for one process) calls this
    with its own pieces, which together are every tensor once; a piece that several ranks hold alike may be given
    by any of them or by all. `state` (plain JSON) is the first rank's. A valid checkpoint of the same step stays
    as it is: the call then does nothing but say so. A damaged one is moved aside.

    Raises CannotWriteError on every rank when any of them fails, before anything is written when there is not
    room for all; StorageError where the file system goes on failing after some attempts.
    """
    rank = 0 if group is None else dist.get_rank(group)
    mine, error = _collect(rank, pieces)
    needed = _sum_of(mine, error, group)
    begun = _begin(root, step, needed) if rank == 0 else Opening()
    begun = Opening(**orjson.loads(broadcast_bytes(orjson.dumps(begun), group)))
    if begun.error:
        raise CannotWriteError(begun.error)
    final = root / step_name(step)
    if not begun.folder:
        return final
    folder = root / begun.folder
    reports = gather_bytes(_write_part(folder, rank, mine), group)
    trouble = _finish(folder, final, step, state, reports) if rank == 0 else _Trouble()
    trouble = _Trouble(**orjson.loads(broadcast_bytes(orjson.dumps(trouble), group)))
    if trouble.error:
        raise (StorageError if trouble.failing else CannotWriteError)(trouble.error)
    return final


def planned_size(pieces: Iterable[Piece]) -> int:
    """Bytes of the shard that a rank with these pieces would write; their tensors need not have any elements."""
    mine, error = _collect(0, pieces)
    assert not error, error
    return shard_size({key: piece.tensor for key, piece in mine.items()})


def refuse_unwritable(root: Place) -> None:
    """CannotWriteError when no checkpoint could be written below `root`: told at the start, not after hours."""
    folder, name = folder_at(root), f"writable-{uuid.uuid4().hex}"
    try:
        folder.make()
        with folder.sink(name) as write:
            write(b"ok")
        folder.discard(name)
    except OSError as error:
        told = error.strerror or error
        raise CannotWriteError(
            f"cannot write checkpoints below {root}: {told}; choose another checkpoint.dir or run.dir"
        ) from error


def _collect(rank: int, pieces: Iterable[Piece]) -> tuple[dict[str, Piece], str]:
    """This rank's pieces by their key in the shard, and what is wrong with them: nothing is raised, the others wait."""
    mine: dict[str, Piece] = {}
    try:
        for piece in pieces:
            _check_piece(piece)
            if piece.box.size > 0 or prod(piece.global_shape) == 0:
                mine[f"{piece.name}@{','.join(map(str, piece.box.offset))}"] = piece
    except Exception as failure:
        return {}, f"rank {rank} cannot save: {type(failure).__name__}: {failure}"
    return mine, ""


def _sum_of(mine: Mapping[str, Piece], error: str, group: dist.ProcessGroup | None) -> int:
    """Bytes that all ranks will write; CannotWriteError with what the first of them has to complain of."""
    size = sum(piece.tensor.numel() * piece.tensor.element_size() for piece in mine.values())
    told = gather_bytes(orjson.dumps([size, error.encode(errors="replace").decode()]), group)
    answers = [orjson.loads(answer) for answer in told]
    trouble = next((error for _, error in answers if error), "")
    if trouble:
        raise CannotWriteError(trouble)
    return sum(size for size, _ in answers)


def _begin(root: Place, step: int, needed: int) -> Opening:
    try:
        folder_at(root).make()
        final = root / step_name(step)
        if final.name in folder_at(root).folders() and _is_whole(final):
            log.warning("%s is complete already and stays as it is", final)
            return Opening()
        free = folder_at(root).free()
        if free is not None and free < needed + _MANIFEST_BYTES:
            return Opening(
                error=f"the checkpoint of step {step} needs {_size(needed)}, {_size(free)} are free at {root}; "
                "free some space or set checkpoint.keep lower"
            )
        name = f"{final.name}.tmp-{uuid.uuid4().hex}" if folder_at(root).renames else final.name
        folder_at(root / name).make()
        return Opening(name)
    except OSError as error:
        told = error.strerror or error
        return Opening(error=f"cannot save below {root}: {told}; choose another folder or make it writable")
    except Exception as error:  # the other ranks wait for an answer
        return Opening(error=f"cannot save below {root}: {type(error).__name__}: {error}")


def _size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.2f} GB" if count >= 10**7 else f"{count} bytes"


def _is_whole(final: Place) -> bool:
    """Whether a checkpoint verifies; one that does not is moved aside, out of the way of its successor."""
    folder = folder_at(final)
    if not folder.renames and MANIFEST not in folder.sizes():
        folder.remove()  # what an interrupted save left, since there it has its final name at once
        return False
    try:
        Reader(final)
    except DataError as bad:
        name = f"{final.name}.bad-{uuid.uuid4().hex}"
        log.warning("moving a damaged checkpoint aside as %s: %s", name, bad)
        folder.move_to(name)
        return False
    return True


def _write_part(folder: Place, rank: int, mine: Mapping[str, Piece]) -> bytes:
    """Writes this rank's shard; as JSON what it holds, or {"error": why not}: nothing is raised, the others wait."""
    try:
        info = _write_patiently(folder / shard_name(rank), mine)
        slices = [_row(key, piece) for key, piece in mine.items()]
        return orjson.dumps({"name": info.name, "size": info.size, "hash": info.hash, "slices": slices})
    except OSError as failure:
        error = f"rank {rank} cannot write {folder / shard_name(rank)}: {failure.strerror or failure}"
        trouble = _Trouble(_encodable(error), failure.errno in _PASSING)
    except Exception as failure:  # whatever it is, the other ranks must hear of it
        trouble = _Trouble(_encodable(f"rank {rank} cannot save: {type(failure).__name__}: {failure}"))
    return orjson.dumps(trouble)


def _write_patiently(path: Place, mine: Mapping[str, Piece]) -> FileInfo:
    """Writes a shard, once more after a while when the file system has what may be a passing trouble."""
    tensors = {key: piece.tensor for key, piece in mine.items()}
    for pause in _PAUSES:
        try:
            return write_shard(path, tensors)
        except OSError as failure:
            if failure.errno not in _PASSING:
                raise
            log.warning("%s: %s; once more in %g s", path, failure.strerror, pause)
        time.sleep(pause)
        folder_at(path.parent).discard(path.name)
    return write_shard(path, tensors)


def _row(key: str, piece: Piece) -> list[object]:
    dtype = str(piece.tensor.dtype).removeprefix("torch.")
    return [piece.name, dtype, list(piece.global_shape), key, list(piece.box.offset), list(piece.box.shape)]


def _check_piece(piece: Piece) -> None:
    if tuple(piece.tensor.shape) != piece.box.shape or not is_inside(piece.box, piece.global_shape):
        raise ValueError(
            f"{piece.name}: a tensor of shape {list(piece.tensor.shape)} does not fill the part at "
            f"{list(piece.box.offset)} of shape {list(piece.box.shape)} of {list(piece.global_shape)}"
        )


def _encodable(text: str) -> str:
    return text.encode(errors="replace").decode()


def _finish(folder: Place, final: Place, step: int, state: Mapping[str, JSON], reports: list[bytes]) -> _Trouble:
    """Commits what the ranks have written; no trouble, or why it could not be (then the folder is gone)."""
    try:
        parts = [orjson.loads(report) for report in reports]
        found = [_Trouble(**part) for part in parts if "error" in part]
        if not found:
            write_manifest(folder, assemble(step, state, parts))
            commit(folder, final)
            return _Trouble()
        trouble = found[0]
    except OSError as failure:
        error = f"cannot write {folder}: {failure.strerror or failure}"
        trouble = _Trouble(_encodable(error), failure.errno in _PASSING)
    except Exception as failure:  # the other ranks wait for an answer
        trouble = _Trouble(_encodable(f"cannot save: {type(failure).__name__}: {failure}"))
    with suppress(OSError):
        folder_at(folder).remove()
    return trouble


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


def write_manifest(folder: Place, manifest: Manifest) -> None:
    """Writes manifest.json and sees to it that it and the folder's entries are on the disk."""
    with folder_at(folder).sink(MANIFEST) as write:
        write(encode(manifest))
    folder_at(folder).settle()


def commit(folder: Place, final: Place) -> None:
    """Makes a written folder the checkpoint `final`: from here on it exists (in an object store since its manifest)."""
    if folder != final:
        folder_at(folder).move_to(final.name)
        folder_at(final.parent).settle()
