"""The processes of a run: who they are, and what each says of itself when something is wrong.

When a rank finds that it cannot go on it writes down where it is, in a file of the run's folder, and waits a little for
the others to do so: whoever has not is where to look first. Nothing is written while all is well.
"""

import logging
import os
import signal
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import orjson
import psutil
import torch.distributed as dist

from megaswitch.comm.messages import broadcast_bytes, gather_bytes
from megaswitch.topology.start import lost_a_peer
from megaswitch.train.whereabouts import Whereabouts, failed_in, whereabouts
from megaswitch.utils.errors import PeerLostError

log = logging.getLogger(__name__)

FOLDER = "trouble"
STOPPED = "is stopped (SIGSTOP)"
_SHOWN = 8


@dataclass(frozen=True)
class Peer:
    """A process of the run."""

    rank: int
    host: str
    pid: int

    def state(self) -> str:
        """What can be seen of it from this process: empty when it lives, or is on another host."""
        if self.host != socket.gethostname():
            return ""
        try:
            status = psutil.Process(self.pid).status()
        except psutil.NoSuchProcess:
            return "is gone"
        except psutil.Error:
            return ""
        if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return "is gone"
        return STOPPED if status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP) else ""


class Peers:
    """All processes of a run, and the folder where they leave word in trouble."""

    def __init__(self, rank: int, peers: Sequence[Peer], folder: Path) -> None:
        self.rank, self._peers, self.folder, self.step = rank, peers, folder, 0

    @property
    def alone(self) -> bool:
        """Whether this process is the only one."""
        return len(self._peers) == 1

    def alarm(self) -> bool:
        """Whether some rank has left word."""
        return self.folder.is_dir()

    def leave_word(self, mine: Whereabouts) -> None:
        """Write down where this rank is, for the others and for whoever looks into it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"rank-{mine.rank:05d}.json"
            aside = path.with_suffix(".tmp")
            aside.write_bytes(orjson.dumps(mine.as_dict(), option=orjson.OPT_INDENT_2))
            aside.replace(path)
        except OSError as error:
            log.error("cannot write %s: %s", self.folder, error.strerror or error)

    def words(self) -> dict[int, Whereabouts]:
        """What ranks have written so far."""
        found = {}
        for path in sorted(self.folder.glob("rank-*.json")):
            with suppress(OSError, ValueError, TypeError):
                word = Whereabouts(**orjson.loads(path.read_bytes()))
                found[word.rank] = word
        return found

    def await_words(self, seconds: float) -> dict[int, Whereabouts]:
        """What all ranks wrote, or those that did within so many seconds."""
        limit = time.monotonic() + seconds
        while any(p.rank not in (words := self.words()) and not p.state() for p in self._peers):
            if time.monotonic() > limit:
                break
            time.sleep(0.05)
        return words

    def end_the_stopped(self) -> None:
        """Kills the stopped processes of this host: they hear no other signal, and torchrun would wait for them."""
        for peer in self._peers:
            if peer.rank != self.rank and peer.state() == STOPPED:
                with suppress(OSError):
                    os.kill(peer.pid, signal.SIGKILL)

    def verdict(self, words: dict[int, Whereabouts]) -> str:
        """Who is to blame, as far as can be told: who is gone or stopped, who is silent, and where the others are."""
        silent = [peer for peer in self._peers if peer.rank not in words]
        states = {peer.rank: peer.state() for peer in silent}
        known = [f"rank {p.rank} ({p.host}, pid {p.pid}) {states[p.rank]}" for p in silent if states[p.rank]]
        unknown = [p for p in silent if not states[p.rank]]
        if unknown and not known:
            known = [f"rank {p.rank} ({p.host}, pid {p.pid}) does not answer" for p in unknown]
        busy = [w.told() for w in words.values() if not w.waits_for]
        waiting = [w.told() for w in words.values() if w.waits_for]
        lines = [*known, *busy, *waiting]
        more = len(lines) - _SHOWN
        return "; ".join(lines[:_SHOWN]) + (f"; and {more} more" if more > 0 else "") + f" (stacks in {self.folder})"


def meet(rank: int, folder: Path, group: "dist.ProcessGroup | None") -> Peers:
    """Exchanges who everybody is; a collective of all."""
    mine = orjson.dumps([rank, socket.gethostname(), os.getpid()])
    peers = [Peer(*orjson.loads(told)) for told in gather_bytes(mine, group)]
    # a start has a folder of its own, so that what an earlier one left is not taken for its words
    name = broadcast_bytes(f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}".encode(), group).decode()
    return Peers(rank, peers, folder / FOLDER / name)


@contextmanager
def naming_the_lost(peers: Peers, seconds: float = 2.0) -> Iterator[None]:
    """A collective that fails inside because of another process becomes a PeerLostError that says which."""
    try:
        yield
    except RuntimeError as error:
        if peers.alone or not lost_a_peer(error):
            raise
        first = str(error).splitlines()[0]
        waiting = failed_in(error) or "another process"
        peers.leave_word(whereabouts(peers.rank, peers.step, "an error", 0.0, waiting))
        verdict = peers.verdict(peers.await_words(seconds))
        raise PeerLostError(
            f"rank {peers.rank}: another process died or stopped answering: {verdict} ({first})"
        ) from error
