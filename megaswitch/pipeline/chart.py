"""What there is to show of a schedule: played in time, with what its chunks are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from megaswitch.pipeline.simulate import Timeline

Part = Literal["encoder", "decoder", "both"]
"""Of which stack a stage is; "both" where it reaches from one into the other."""
NAMES = {"gpipe": "GPipe", "1f1b": "1F1B", "zb_h1": "ZB-H1", "zb_v": "ZB-V"}
"""Schedules as people write them, by `layout.schedule`."""


@dataclass(frozen=True)
class Chart:
    """A schedule and its timeline.

    Args:
        kind: as `layout.schedule`.
        num_microbatches: micro-batches of the step.
        timeline: when each action begins and ends.
        parts: of which stack each rank's chunks are.
    """

    kind: str
    num_microbatches: int
    timeline: Timeline
    parts: Sequence[Sequence[Part]]

    @property
    def title(self) -> str:
        """Schedule, sizes and the bubble, for instance "1F1B: 4 ranks x 2 chunks, 8 micro-batches, bubble 19.3%"."""
        ranks, chunks = len(self.parts), len(self.parts[0])
        sizes = f"{_count(ranks, 'rank')} x {_count(chunks, 'chunk')}"
        work = _count(self.num_microbatches, "micro-batch", "es")
        return f"{NAMES[self.kind]}: {sizes}, {work}, bubble {self.timeline.bubble:.1%}"

    def busy(self, rank: int) -> float:
        """Share of the makespan in which a rank computes."""
        spans = self.timeline.spans[rank]
        return sum(span.end - span.start for span in spans) / self.timeline.makespan


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}{'' if number == 1 else plural}"
