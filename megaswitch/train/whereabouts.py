"""Where a process is: its stack, and what it waits for."""

import os
import socket
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from types import FrameType

from megaswitch.comm import p2p
from megaswitch.comm.collectives import Pending
from megaswitch.data import prefetch

BATCH = "a batch"
_LETTERS, _BATCHES = p2p.__file__, prefetch.__file__


@dataclass(frozen=True)
class Whereabouts:
    """What one rank says when something is wrong.

    `waits_for` is the collective or transfer that its main thread stands in, empty when it stands in none; `seconds`
    since it last got on.
    """

    rank: int
    host: str
    pid: int
    step: int
    phase: str
    waits_for: str
    seconds: float
    stacks: dict[str, list[str]]

    def told(self) -> str:
        """In a line."""
        doing = f"waits for {self.waits_for}" if self.waits_for else f"is busy with {self.phase}"
        return f"rank {self.rank} ({self.host}, pid {self.pid}) {doing} in step {self.step}, for {self.seconds:.0f} s"

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def _main_thread() -> Iterator[FrameType]:
    """The frames of the main thread as it runs, innermost first."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _waits_here(frame: FrameType) -> str:
    """What a frame waits for, by the name of its code; locals are looked at where it is a wait alone, since that keeps
    them alive."""
    name, file = frame.f_code.co_name, frame.f_code.co_filename
    if name == "wait":
        own = frame.f_locals.get("self")
        return own.kind if isinstance(own, Pending) else "receive:pp" if file == _LETTERS else ""
    if name == "flush":
        return "send:pp" if file == _LETTERS else ""
    if name == "__iter__":
        return BATCH if file == _BATCHES else ""
    return name if name in ("barrier", "gather_bytes", "broadcast_bytes") else ""


def waits_for(frames: Iterable[FrameType]) -> str:
    """The collective or transfer that some code stands in (or `BATCH`), read from its frames; empty for none."""
    return next(filter(None, map(_waits_here, frames)), "")


def main_waits_for() -> str:
    """That of the main thread, now."""
    return waits_for(_main_thread())


def failed_in(error: BaseException) -> str:
    """That in which an error was raised."""
    return waits_for(frame for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))))


def stacks() -> dict[str, list[str]]:
    """Every thread's stack by the thread's name, innermost frame last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        names.get(ident, str(ident)): [f"{s.filename}:{s.lineno} {s.name}" for s in traceback.extract_stack(frame)]
        for ident, frame in sys._current_frames().items()
    }


def whereabouts(rank: int, step: int, phase: str, seconds: float, waiting: str) -> Whereabouts:
    """Of this process."""
    return Whereabouts(rank, socket.gethostname(), os.getpid(), step, phase, waiting, seconds, stacks())
