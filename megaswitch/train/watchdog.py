"""A thread that sees when a step does not get on, has every rank tell where it is, and ends the run.

It also samples what the main thread does: how much of the time it waits for others, and in which phase it is busy.
"""

import faulthandler
import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from megaswitch.train.peers import Peers
from megaswitch.train.whereabouts import BATCH, Whereabouts, main_waits_for, whereabouts
from megaswitch.utils.errors import PeerLostError

log = logging.getLogger(__name__)

_TICK = 0.05
"""Seconds between two looks."""
_GRACE = 10.0
"""Seconds that the others have at most to leave word."""
WAITING = "waiting"


class Watchdog:
    """Watches one process. The loop says what it begins (`enter`) and that it gets on (`beat`), at next to no cost.

    Time in which this process itself did not run (a suspended job, a sleeping machine) does not count.
    """

    def __init__(self, peers: Peers, limit: float, end: Callable[[int], None] = os._exit) -> None:
        """After `limit` seconds without a beat every rank leaves word and ends with `end(76)`; a process that is alone
        only says so, once: there is nobody who waits for it."""
        self._peers, self._limit, self._end = peers, limit, end
        self._phase, self._beats = "", 0
        self._seen, self._stalled, self._told = 0, 0.0, False
        self._samples: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="watchdog", daemon=True)

    def enter(self, phase: str, step: int | None = None) -> None:
        """The main thread begins with something else; with "" nothing is watched (until the next `enter`)."""
        self._phase = phase
        if step is not None:
            self._peers.step = step
        self._beats += 1

    def beat(self) -> None:
        """The main thread gets on."""
        self._beats += 1

    def take_samples(self) -> Counter[str]:
        """How often the main thread was seen waiting for others, and in which phase otherwise, since the last call."""
        taken, self._samples = self._samples, Counter()
        return taken

    @contextmanager
    def watching(self) -> Iterator["Watchdog"]:
        """For the length of the block."""
        with suppress(OSError, ValueError):
            faulthandler.enable(sys.__stderr__.fileno() if sys.__stderr__ else 2)  # a crash in C shows its stacks
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def _work(self) -> None:
        before, armed = time.monotonic(), 0.0
        while not self._stop.wait(_TICK):
            now = time.monotonic()
            self._look(min(now - before, 2 * _TICK))
            if now - armed > self._limit / 8:
                self._arm()
                armed = now
            before = now

    def _arm(self) -> None:
        """Whatever holds the interpreter's lock stops this thread too; then faulthandler, which needs no lock, shows
        the stacks on the standard error."""
        if sys.__stderr__ is not None:
            with suppress(OSError, ValueError):
                faulthandler.dump_traceback_later(2 * self._limit, file=sys.__stderr__.fileno())

    def _look(self, seconds: float) -> None:
        if self._beats != self._seen or not self._phase:
            self._seen, self._stalled, self._told = self._beats, 0.0, False
        else:
            self._stalled += seconds
        waiting = main_waits_for()
        self._samples[self._phase if waiting in ("", BATCH) else WAITING] += 1
        late = self._stalled > self._limit / 2 and self._peers.alarm()
        if (late or self._stalled > self._limit) and not self._told:
            self._told = True
            self._raise_alarm("" if waiting == BATCH else waiting)

    def _raise_alarm(self, waiting: str) -> None:
        peers = self._peers
        mine = whereabouts(peers.rank, peers.step + 1, self._phase, self._stalled, waiting)
        peers.leave_word(mine)
        if peers.alone:
            log.error("nothing gets on: %s (stacks in %s)", mine.told(), peers.folder)
            return
        words = peers.await_words(min(_GRACE, self._limit / 2))
        self._say(mine, words)
        peers.end_the_stopped()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self._end(PeerLostError.exit_code)

    def _say(self, mine: Whereabouts, words: dict[int, Whereabouts]) -> None:
        if mine.rank == min(words, default=mine.rank):
            log.error("the step hangs: %s", self._peers.verdict(words))
        else:
            log.error("ends, since the step hangs: %s", mine.told())


def hang_limit(hang: float, timeout: float) -> float:
    """Seconds without progress that are too many: as configured, or before collectives themselves give up."""
    return hang or 0.8 * timeout
