"""Which checkpoint a run starts from, which ones stay, and what one holds."""

import logging
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import orjson
import torch.distributed as dist

from megaswitch.checkpoint.format import step_of
from megaswitch.checkpoint.reader import Reader, check, check_hashes
from megaswitch.comm.messages import broadcast_bytes, gather_bytes
from megaswitch.utils.errors import DataError, MissingInputError

log = logging.getLogger(__name__)

_ASIDE = re.compile(r"(step-\d{8,18})\.tmp-[0-9a-f]{32}", re.ASCII)


def committed(root: Path) -> list[Path]:
    """Folders below `root` that are named as checkpoints, newest first; whether they are whole is not looked at."""
    if not root.is_dir():
        return []
    found = [(step, path) for path in root.iterdir() if (step := step_of(path.name)) is not None]
    return [path for _, path in sorted(found, reverse=True)]


def choose(root: Path, resume: str, group: dist.ProcessGroup | None = None) -> Path | None:
    """The checkpoint to start from, the same on every rank of the group; None for a fresh start.

    `resume` is "none"; "auto": the newest below `root` that verifies, where each damaged one is told of; or the
    path of a checkpoint, which must verify (else DataError, or MissingInputError when it is not there). The ranks
    share the hashing, so that a `Reader` of the result needs no `verify`.
    """
    if resume == "none":
        return None
    rank = 0 if group is None else dist.get_rank(group)
    tell: Callable[[str], None] = log.error if rank == 0 else log.debug
    if resume != "auto":
        trouble = _trouble(Path(resume), group)
        if trouble and not Path(resume).exists():
            raise MissingInputError(f"checkpoint.resume: {resume} is not there; give a folder, or auto, or none")
        if trouble:
            raise DataError(f"checkpoint.resume: {trouble}")
        return Path(resume)
    found = orjson.dumps([path.name for path in committed(root)] if rank == 0 else [])
    names: list[str] = orjson.loads(broadcast_bytes(found, group))
    candidates = [root / name for name in names]
    for path in candidates:
        trouble = _trouble(path, group)
        if not trouble:
            return path
        tell(f"checkpoint {path.name} cannot be used, trying an older one: {trouble}")
    if candidates:
        tell(f"none of the {len(candidates)} checkpoints below {root} can be used: starting afresh")
    return None


def _trouble(path: Path, group: dist.ProcessGroup | None) -> str:
    """What is wrong with a checkpoint, as the first rank that found something says; every rank hashes its share."""
    rank, world = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    trouble = ""
    try:
        check_hashes(path, check(path), rank, world)
    except (DataError, OSError) as bad:
        trouble = str(bad)
    return next((told.decode() for told in gather_bytes(trouble.encode(), group) if told), "")


def prune(root: Path, keep: int) -> None:
    """Removes all but the `keep` newest checkpoints, and what interrupted saves of older steps left. One rank calls it.

    Nothing is removed when `keep` is 0 or the newest is damaged; damaged ones do not count (manifest and sizes
    are looked at, not hashes). Only folders named as `save` names them are touched.
    """
    newest_first = committed(root)
    if not newest_first or keep <= 0:
        return
    good = 0
    for path in newest_first:
        if good >= keep:
            _remove(path)
            continue
        try:
            check(path)
            good += 1
        except DataError as bad:
            log.warning("%s", bad)
            if good == 0:
                log.warning("no checkpoint is removed while the newest is damaged")
                return
    newest = step_of(newest_first[0].name) or 0
    for path in root.iterdir():
        match = _ASIDE.fullmatch(path.name)
        if match and (step_of(match[1]) or 0) <= newest:  # later ones may be in the making
            shutil.rmtree(path, ignore_errors=True)


def _remove(path: Path) -> None:
    """Renamed first: what is half removed must not look like a checkpoint."""
    aside = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except OSError as error:
        log.warning("cannot remove %s: %s", path, error.strerror)
        return
    shutil.rmtree(aside, ignore_errors=True)


def describe(path: Path) -> str:
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
