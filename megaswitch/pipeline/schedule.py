"""Pipeline schedules as data: for each rank, the list of what it computes, in order.

Chunk c of rank r is stage c * num_ranks + r. F of a stage needs F of the stage before it; B needs B of the stage
after it and its own F. Sends never wait, receives do. On all ranks forwards pass in one order and backwards in
one order, so messages between two ranks arrive in the order they are wanted (`simulate.check_order`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Literal


class Kind(Enum):
    """What is computed: a forward pass or a backward pass."""

    FORWARD = "F"
    BACKWARD = "B"


@dataclass(frozen=True)
class Action:
    """One pass of one micro-batch through one of the rank's chunks."""

    kind: Kind
    microbatch: int
    chunk: int

    def __str__(self) -> str:
        return f"{self.kind.value}{self.microbatch}.{self.chunk}"


Schedule = list[list[Action]]
"""The actions of each rank."""


def make_schedule(kind: Literal["1f1b", "gpipe"], num_ranks: int, num_chunks: int, num_microbatches: int) -> Schedule:
    """Each rank's actions for one training step; any number of micro-batches is legal.

    "gpipe" is all forwards, then all backwards. "1f1b" holds as few activations as keep the pipeline full
    (`in_flight`): forwards up to one fewer than that, then a forward and a backward in turn.
    """
    assert min(num_ranks, num_chunks, num_microbatches) >= 1
    forwards = forward_order(num_ranks, num_chunks, num_microbatches)
    backwards = [Action(Kind.BACKWARD, a.microbatch, num_chunks - 1 - a.chunk) for a in forwards]
    if kind == "gpipe":
        return [forwards + backwards for _ in range(num_ranks)]
    widest = max(map(len, groups(num_ranks, num_microbatches)))
    return [_in_turn(forwards, backwards, in_flight(num_ranks, rank, num_chunks, widest)) for rank in range(num_ranks)]


def forward_only(num_ranks: int, num_chunks: int, num_microbatches: int) -> Schedule:
    """Each rank's actions when nothing is learned (evaluation)."""
    return [forward_order(num_ranks, num_chunks, num_microbatches) for _ in range(num_ranks)]


def groups(num_ranks: int, num_microbatches: int) -> list[range]:
    """Micro-batches that pass a chunk together before any of them enters the next chunk.

    Each group has at least as many as there are ranks, where there are that many: the first of a group has then
    come round to the first rank just when the last has left it. What does not divide is spread evenly.
    """
    count = max(1, num_microbatches // num_ranks)
    edges = [i * num_microbatches // count for i in range(count + 1)]
    return [range(start, stop) for start, stop in pairwise(edges)]


def forward_order(num_ranks: int, num_chunks: int, num_microbatches: int) -> list[Action]:
    """The order in which every rank does its forwards: group by group, in a group chunk by chunk."""
    if num_chunks == 1:
        return [Action(Kind.FORWARD, m, 0) for m in range(num_microbatches)]
    return [
        Action(Kind.FORWARD, microbatch, chunk)
        for group in groups(num_ranks, num_microbatches)
        for chunk in range(num_chunks)
        for microbatch in group
    ]


def in_flight(num_ranks: int, rank: int, num_chunks: int, group: int) -> int:
    """Activations that a rank holds under "1f1b": what fills the pipeline behind it, as in the published schedules.

    `group` is the largest group's size. That it suffices for groups of any size is what the tests show.
    """
    after = num_ranks - rank - 1
    return after + 1 if num_chunks == 1 else 2 * after + (num_chunks - 1) * group + 1


def _in_turn(forwards: Sequence[Action], backwards: Sequence[Action], most: int) -> list[Action]:
    """Forwards while fewer than `most` are held, then the next forward and the next backward in turn."""
    warm_up = min(most - 1, len(forwards))
    actions = list(forwards[:warm_up])
    for forward, backward in zip(forwards[warm_up:], backwards, strict=False):
        actions += [forward, backward]
    return actions + list(backwards[len(forwards) - warm_up :])


def needs(action: Action, stage: int, num_stages: int) -> list[tuple[Kind, int, int]]:
    """What must have ended before an action of a stage can begin: (kind, micro-batch, stage)."""
    m = action.microbatch
    if action.kind is Kind.FORWARD:
        return [(Kind.FORWARD, m, stage - 1)] if stage > 0 else []
    own = [(Kind.FORWARD, m, stage)]
    return [*own, (Kind.BACKWARD, m, stage + 1)] if stage < num_stages - 1 else own
