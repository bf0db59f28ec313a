"""Pipeline schedules as data: for each rank, the list of what it computes, in order.

Which stage a rank's chunk is, is said by `topology.placement`. Sends never wait, receives do. What two ranks send
each other is sent in the order in which it is wanted (`simulate.check_order`).
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from megaswitch.pipeline.actions import Action, Kind, Schedule, needs
from megaswitch.pipeline.zero_bubble import v_forwards, zb_h1, zb_v

__all__ = ["Action", "Kind", "Schedule", "forward_only", "make_schedule", "needs"]

ScheduleKind = Literal["gpipe", "1f1b", "zb_h1", "zb_v"]


def make_schedule(kind: ScheduleKind, num_ranks: int, num_chunks: int, num_microbatches: int) -> Schedule:
    """Each rank's actions for one training step; any number of micro-batches is legal.

    - "gpipe": all forwards, then all backwards.
    - "1f1b": as few activations as keep the pipeline full (`in_flight`): forwards up to one fewer than that, then a
      forward and a backward in turn. Interleaved where there are several chunks.
    - "zb_h1": the same with backwards in two, and no rank holding more than the first rank holds under "1f1b".
    - "zb_v": two chunks in the V placement, backwards in two; as "zb_h1" on a single rank.
    """
    assert min(num_ranks, num_chunks, num_microbatches) >= 1
    if kind == "zb_v" and num_ranks > 1:
        assert num_chunks == 2, "the V placement is of two chunks"
        return _copy(_zb_v(num_ranks, num_microbatches))
    forwards = forward_order(num_ranks, num_chunks, num_microbatches)
    backwards = [Action(Kind.BACKWARD, a.microbatch, num_chunks - 1 - a.chunk) for a in forwards]
    if kind == "gpipe":
        return [forwards + backwards for _ in range(num_ranks)]
    if kind != "1f1b":
        return _copy(_zb_h1(num_ranks, num_chunks, num_microbatches))
    widest = max(map(len, groups(num_ranks, num_microbatches)))
    return [_in_turn(forwards, backwards, in_flight(num_ranks, rank, num_chunks, widest)) for rank in range(num_ranks)]


def forward_only(num_ranks: int, num_chunks: int, num_microbatches: int, *, v: bool = False) -> Schedule:
    """Each rank's actions when nothing is learned (evaluation); `v` is the V placement."""
    if v and num_ranks > 1:
        return v_forwards(num_ranks, num_microbatches)
    return [forward_order(num_ranks, num_chunks, num_microbatches) for _ in range(num_ranks)]


@lru_cache(maxsize=8)
def _zb_h1(num_ranks: int, num_chunks: int, num_microbatches: int) -> Schedule:
    """Kept, since it is asked for at every step and takes longer to find than the others."""
    forwards = forward_order(num_ranks, num_chunks, num_microbatches)
    widest = max(map(len, groups(num_ranks, num_microbatches)))
    return zb_h1(forwards, num_ranks, num_chunks, in_flight(num_ranks, 0, num_chunks, widest))


@lru_cache(maxsize=8)
def _zb_v(num_ranks: int, num_microbatches: int) -> Schedule:
    return zb_v(num_ranks, num_microbatches)


def _copy(schedule: Schedule) -> Schedule:
    return [list(actions) for actions in schedule]


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
