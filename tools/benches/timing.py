"""Times things in turns, so that what else the machine does falls on all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from megaswitch.data.prep.command import progress


@dataclass(frozen=True)
class Taken:
    """Seconds by the clock, and seconds of processors."""

    wall: float
    cpu: float

    def seconds(self, threads: int) -> float:
        """What counts: processor time for one thread, which other work changes least, and the clock for several."""
        return self.cpu if threads == 1 else self.wall


SETTLED = 8
"""Rounds of a training step after which most freed memory has found its place, and few pages are cleared anew."""

Work = Callable[[], object]
Contender = Callable[[], Taken]


@dataclass(frozen=True)
class Figure:
    """Measured values of one thing, one a round."""

    values: tuple[float, ...]
    unit: str

    @property
    def median(self) -> float:
        """The one that is quoted."""
        return statistics.median(self.values)

    def json(self) -> dict[str, float | str]:
        """Median and range."""
        return {"value": self.median, "low": min(self.values), "high": max(self.values), "unit": self.unit}

    def per(self, amount: float, unit: str) -> "Figure":
        """Seconds as so much a second."""
        return Figure(tuple(amount / value for value in self.values), unit)

    def times(self, factor: float, unit: str) -> "Figure":
        """In another unit."""
        return Figure(tuple(factor * value for value in self.values), unit)


def clocked(work: Work) -> Contender:
    """Work of this process as something that can be timed."""

    def once() -> Taken:
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        return Taken(time.perf_counter() - wall, time.process_time() - cpu)

    return once


def in_turns(
    contenders: Mapping[str, Contender], repeats: int, threads: int, warm: int = 1
) -> dict[str, Figure]:
    """Seconds of each: after `warm` rounds that do not count, `repeats` rounds, each in another order."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    with progress("rounds", warm + repeats) as advance:
        for number in range(warm + repeats):
            for name in order:
                seconds = contenders[name]().seconds(threads)
                if number >= warm:
                    taken[name].append(seconds)
            order = order[1:] + order[:1]
            advance(1)
    return {name: Figure(tuple(values), "s") for name, values in taken.items()}


def ratio(ours: Figure, peer: Figure) -> Figure:
    """How many times as fast we are, round by round, from seconds."""
    return Figure(tuple(p / o for o, p in zip(ours.values, peer.values, strict=True)), "times")


def best(figures: Mapping[str, Figure]) -> str:
    """The name of the fastest, from seconds."""
    return min(figures, key=lambda name: figures[name].median)


def least(work: Work, threads: int, seconds: float) -> float:
    """The least time that something short takes, of calls that add up to `seconds`, and of three at least."""
    once, total, found = clocked(work), 0.0, []
    while total < seconds or len(found) < 3:
        found.append(once().seconds(threads))
        total += found[-1]
    return min(found)
