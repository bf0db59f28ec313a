"""Which checkpoints stay."""

import logging
import re
import uuid
from collections.abc import Iterator
from contextlib import suppress

from megaswitch.checkpoint.choose import committed
from megaswitch.checkpoint.folders import folder_at
from megaswitch.checkpoint.format import Manifest, step_of
from megaswitch.checkpoint.places import Place
from megaswitch.checkpoint.reader import check
from megaswitch.utils.errors import DataError

log = logging.getLogger(__name__)

VALIDATION_NLL = "validation_nll"
"""Key of a checkpoint's state: nats per target at its step."""
_ASIDE = re.compile(r"(step-\d{8,18})\.(tmp|bad)-[0-9a-f]{32}", re.ASCII)


def prune(root: Place, keep: int, keep_every: int = 0, keep_best: int = 0) -> None:
    """Removes all but the `keep` newest checkpoints, those of steps that are multiples of `keep_every`, and the
    `keep_best` of the lowest validation nll; what interrupted saves of older steps left; and of the damaged ones that
    were moved aside all but the `keep` newest. One rank calls it.

    Nothing is removed when `keep` is 0 or the newest is damaged; damaged ones do not count (manifest and sizes
    are looked at, not hashes). Only folders named as `save` names them are touched.
    """
    newest_first = committed(root)
    if not newest_first or keep <= 0:
        return
    last: list[Place] = []
    for path, _ in _whole(newest_first):
        last.append(path)
        if len(last) == keep:
            break
    if last[:1] != newest_first[:1]:
        log.warning("no checkpoint is removed while the newest is damaged")
        return
    older = [path for path in newest_first if _step(path) < _step(last[-1])] if len(last) == keep else []
    best = _best(newest_first, keep_best)
    for path in older:
        if path not in best and not (keep_every and _step(path) % keep_every == 0):
            _remove(path)
    _sweep(root, _step(newest_first[0]), keep)


def removable(root: Place, keep: int) -> bool:
    """Whether `prune` might find something to remove: more checkpoints than it keeps."""
    return 0 < keep < len(committed(root))


def _whole(paths: list[Place]) -> Iterator[tuple[Place, Manifest]]:
    for path in paths:
        try:
            yield path, check(path)
        except DataError as bad:
            log.warning("%s", bad)


def _step(path: Place) -> int:
    return step_of(path.name) or 0


def _best(paths: list[Place], count: int) -> list[Place]:
    """The checkpoints of the lowest validation nll, the newer first among equals."""
    if not count:
        return []
    known = [(nll, path) for path, m in _whole(paths) if isinstance(nll := m.state.get(VALIDATION_NLL), float)]
    return [path for _, path in sorted(known, key=lambda pair: pair[0])[:count]]


def _sweep(root: Place, newest: int, keep: int) -> None:
    """Removes what interrupted saves left (what is for a later step may be in the making), and old damaged ones."""
    found = [match for name in folder_at(root).folders() if (match := _ASIDE.fullmatch(name))]
    unfinished = [match[0] for match in found if match[2] == "tmp" and (step_of(match[1]) or 0) <= newest]
    damaged = sorted((step_of(match[1]) or 0, match[0]) for match in found if match[2] == "bad")
    for name in [*unfinished, *(name for _, name in damaged[:-keep])]:
        with suppress(OSError):
            folder_at(root / name).remove()


def _remove(path: Place) -> None:
    """Renamed first: what is half removed must not look like a checkpoint."""
    folder = folder_at(path)
    try:
        if folder.renames:
            aside = f"{path.name}.tmp-{uuid.uuid4().hex}"
            folder.move_to(aside)
            folder = folder_at(path.with_name(aside))
        folder.remove()
    except OSError as error:
        log.warning("cannot remove %s: %s", path, error.strerror or error)
