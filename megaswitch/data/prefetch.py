"""Makes batches ahead of their use on a thread of its own: reading and corruption happen in C++, which leaves the
interpreter free."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from threading import Event, Thread
from types import TracebackType
from typing import Protocol

from megaswitch.data.batch import Batch, Empty, empty


class Source(Protocol):
    """Anything that makes batches by number; `Dataset` does."""

    def batch(self, first: int, count: int, make: Empty) -> Batch:
        """Samples first .. first + count - 1, in arrays that `make` gives."""
        ...


Plan = Callable[[int], Sequence[tuple[int, int]]]
"""For a step the (first sample, count) of each of its batches."""


class Prefetcher:
    """Iterates over the batches of steps first_step, first_step + 1, ... up to before `last_step`, a list of batches a
    step.

    Use as a context manager: leaving it ends the thread. An error in making a batch is raised where that step would
    have been returned, after the steps before it. No more than `ahead` finished steps wait.
    """

    def __init__(
        self, source: Source, plan: Plan, first_step: int, last_step: int, ahead: int = 2, make: Empty = empty
    ) -> None:
        """`make` gives the memory that batches lie in."""
        assert ahead >= 1, "at least one step must fit"
        self._source, self._make = source, make
        self._plan = plan
        self._steps = range(first_step, last_step)
        self._ready: queue.Queue[list[Batch] | BaseException | None] = queue.Queue(maxsize=ahead)
        self._stop = Event()
        self._thread = Thread(target=self._work, name="prefetch", daemon=True)

    def __enter__(self) -> Prefetcher:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        while self._thread.is_alive():
            self._drain()
            self._thread.join(timeout=0.05)

    def __iter__(self) -> Iterator[list[Batch]]:
        while True:
            item = self._ready.get()
            if isinstance(item, list):
                yield item
                continue
            self._ready.put(item)  # the worker has ended: whoever asks again gets the same answer, not an endless wait
            if item is None:
                return
            raise item

    def _work(self) -> None:
        try:
            for step in self._steps:
                self._ready.put(self._step(step))
                if self._stop.is_set():
                    return
            self._ready.put(None)
        except BaseException as error:  # whatever it is, it belongs to the consumer
            self._ready.put(error)

    def _step(self, step: int) -> list[Batch]:
        """One step's batches, views of a single one where they follow one another: many rows are made at once."""
        ranges = self._plan(step)
        follow = all(end == first for end, (first, _) in zip(_ends(ranges[:-1]), ranges[1:], strict=True))
        if not (ranges and follow):
            return [self._source.batch(first, count, self._make) for first, count in ranges]
        begin = ranges[0][0]
        whole = self._source.batch(begin, _ends(ranges)[-1] - begin, self._make)
        return [whole.rows(first - begin, first - begin + count) for first, count in ranges]

    def _drain(self) -> None:
        """Makes room, so that a worker waiting to put can see that it should stop."""
        while True:
            try:
                self._ready.get_nowait()
            except queue.Empty:
                return


def _ends(ranges: Sequence[tuple[int, int]]) -> list[int]:
    return [first + count for first, count in ranges]
