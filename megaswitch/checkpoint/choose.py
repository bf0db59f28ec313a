"""Which checkpoint a run starts from, and what one holds."""

import logging
from collections.abc import Callable

import orjson
import torch.distributed as dist

from megaswitch.checkpoint.folders import folder_at
from megaswitch.checkpoint.format import MANIFEST, step_of
from megaswitch.checkpoint.places import Place, place
from megaswitch.checkpoint.reader import Reader, check, check_hashes
from megaswitch.comm.messages import broadcast_bytes, gather_bytes
from megaswitch.utils.errors import DataError, MissingInputError

log = logging.getLogger(__name__)


def committed(root: Place) -> list[Place]:
    """Folders below `root` that are named as checkpoints, newest first; whether they are whole is not looked at."""
    folder = folder_at(root)
    found = sorted(((step, name) for name in folder.folders() if (step := step_of(name)) is not None), reverse=True)
    # where nothing is renamed, what an interrupted save left has its final name already
    return [root / name for _, name in found if folder.renames or MANIFEST in folder_at(root / name).sizes()]


def choose(root: Place, resume: str, group: dist.ProcessGroup | None = None) -> Place | None:
    """The checkpoint to start from, the same on every rank of the group; None for a fresh start.

    `resume` is "none"; "auto": the newest below `root` that verifies, where each damaged one is told of, and None
    only when there are none at all; or the path or URL of a checkpoint, which must verify. Else DataError, or
    MissingInputError when it is not there. The ranks share the hashing, so that a `Reader` of the result needs no
    `verify`.
    """
    if resume == "none":
        return None
    if resume != "auto":
        return _named(place(resume), group)
    folder_at(root)  # what every rank would refuse, none may leave to the first
    rank = 0 if group is None else dist.get_rank(group)
    tell: Callable[[str], None] = log.error if rank == 0 else log.debug
    found = orjson.dumps([path.name for path in _seen(root)] if rank == 0 else [])
    names: list[str] = orjson.loads(broadcast_bytes(found, group))
    troubles = []
    for path in (root / name for name in names):
        trouble = _trouble(path, group)
        if not trouble:
            return path
        tell(f"checkpoint {path.name} cannot be used, trying an older one: {trouble}")
        troubles.append(trouble)
    if troubles:  # whoever lost everything must not find it out from a loss curve that begins again
        raise DataError(
            f"none of the {len(names)} checkpoints below {root} can be used:\n"
            + "\n".join(f"  - {trouble}" for trouble in troubles)
            + "\nrestore one of them, or start afresh in a new run.dir (or with checkpoint.resume=none, once they "
            "are moved away)"
        )
    return None


def _seen(root: Place) -> list[Place]:
    try:
        return committed(root)
    except OSError as error:
        log.error("cannot look for checkpoints below %s: %s", root, error.strerror or error)
        return [root / "unreadable"]  # which no rank can use


def _named(path: Place, group: dist.ProcessGroup | None) -> Place:
    """A checkpoint that was asked for."""
    trouble = _trouble(path, group)
    if trouble and not folder_at(path).sizes():
        raise MissingInputError(f"checkpoint.resume: {path} is not there; give a folder, or auto, or none")
    if trouble:
        raise DataError(f"checkpoint.resume: {trouble}")
    return path


def _trouble(path: Place, group: dist.ProcessGroup | None) -> str:
    """What is wrong with a checkpoint, as the first rank that found something says; every rank hashes its share."""
    rank, world = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    trouble = ""
    try:
        check_hashes(path, check(path), rank, world)
    except (DataError, OSError) as bad:
        trouble = str(bad)
    return next((told.decode() for told in gather_bytes(trouble.encode(), group) if told), "")


def describe(path: Place) -> str:
    """A listing of a checkpoint: step, state, files, every tensor's shape and dtype. DataError when it is damaged."""
    reader = Reader(path, verify=False)
    files = check(path).files.values()
    lines = [f"step {reader.step}", "state " + orjson.dumps(reader.state, option=orjson.OPT_INDENT_2).decode()]
    lines.append(f"{len(files)} files, {sum(f.size for f in files)} bytes")
    lines += [f"  {f.name}  {f.size}  {f.hash}" for f in files]
    lines.append(f"{len(reader.tensors)} tensors")
    for name, info in sorted(reader.tensors.items()):
        lines.append(f"  {name}  {str(info.dtype).removeprefix('torch.')}  {list(info.shape)}")
    return "\n".join(lines)
