"""One job in a run's folder at a time."""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import torch.distributed as dist
from filelock import FileLock, Timeout

from megaswitch.comm.messages import broadcast_bytes
from megaswitch.utils.errors import CannotWriteError

log = logging.getLogger(__name__)

_BEAT_SECONDS = 5.0
"""Between two signs of life. A lock on one host ends with its process; signs are for hosts that do not share locks."""
_PATIENCE_SECONDS = 2.0
"""How long a process that is ending may still hold the lock."""


class _Owner:
    """`owner.json`: who has the folder, with a number that grows while it lives."""

    def __init__(self, folder: Path) -> None:
        self._path, self._beats, self._stop = folder / "owner.json", 0, threading.Event()
        self._thread = threading.Thread(target=self._work, name="owner", daemon=True)

    def read(self) -> dict[str, Any]:
        with suppress(OSError, orjson.JSONDecodeError):
            told = orjson.loads(self._path.read_bytes())
            return told if isinstance(told, dict) else {}
        return {}

    def elsewhere(self) -> str:
        """Who has it on another host, when there are signs of life; empty when nobody has."""
        first = self.read()
        if not first or first.get("host") == socket.gethostname():
            return ""
        log.warning("the run's folder was last used by %s: looking whether it still lives", told(first))
        time.sleep(2.5 * _BEAT_SECONDS)
        return told(first) if self.read() not in ({}, first) else ""

    def _write(self) -> None:
        self._beats += 1
        aside = self._path.with_suffix(".tmp")
        with suppress(OSError):  # a full disk is no reason to end: it is found where it matters
            aside.write_bytes(
                orjson.dumps({"host": socket.gethostname(), "pid": os.getpid(), "beats": self._beats})
            )
            aside.replace(self._path)

    def _work(self) -> None:
        while not self._stop.wait(_BEAT_SECONDS):
            self._write()

    def begin(self) -> None:
        self._write()
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        self._thread.join()
        with suppress(OSError):
            self._path.unlink()


def told(owner: dict[str, Any]) -> str:
    """An owner in words."""
    return f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"


def _take(folder: Path) -> tuple[FileLock | None, str]:
    """The lock of a folder; or None and why not."""
    owner, lock = _Owner(folder), FileLock(folder / "lock")
    remedy = "end it first, or choose another run.dir"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=_PATIENCE_SECONDS)
    except Timeout:
        return None, f"the run's folder {folder} is in use by {told(owner.read())}; {remedy}"
    except OSError as error:
        why = error.strerror or error
        return None, f"cannot write the run's folder {folder}: {why}; choose another with --run.dir"
    if other := owner.elsewhere():
        lock.release(force=True)
        return None, f"the run's folder {folder} is in use by {other}; {remedy}"
    return lock, ""


@contextmanager
def locked(folder: Path, rank: int, group: "dist.ProcessGroup | None") -> Iterator[None]:
    """The first rank holds the run's folder for the length of the block.

    CannotWriteError on every rank when another job has it, or when it cannot be made.
    """
    lock, trouble = _take(folder) if rank == 0 else (None, "")
    trouble = broadcast_bytes(trouble.encode(errors="replace"), group).decode()
    if trouble:
        raise CannotWriteError(trouble)
    if lock is None:
        yield
        return
    owner = _Owner(folder)
    owner.begin()
    try:
        yield
    finally:
        owner.end()
        lock.release(force=True)
