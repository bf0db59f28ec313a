"""Pipeline schedules as data: for each rank, the list of what it computes, in order.

Which stage a rank's chunk is, is said by `topology.placement`. Sends never wait, receives do. What two ranks send
each other is sent in the order in which it is wanted (`simulate.check_order`).
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain, pairwise
from typing import Literal

from megaswitch.pipeline.actions import Action, Kind, Schedule
from megaswitch.pipeline.zero_bubble import put_weights, v_passes

ScheduleKind = Literal["gpipe", "1f1b", "zb_h1", "zb_v"]


def make_schedule(kind: ScheduleKind, num_ranks: int, num_chunks: int, num_microbatches: int) -> Schedule:
    """Each rank's actions for one training step; any number of micro-batches is legal.

    - "gpipe": all forwards, then all backwards.
    - "1f1b": as few activations as keep the pipeline full (`in_flight`): forwards up to one fewer than that, then a
      forward and a backward in turn. Interleaved where there are several chunks.
    - "zb_h1": the same with backwards in two. Every rank holds at most what the first rank needs to keep the pipeline
      full, from F to the end of W: as much as under "1f1b", or less where there are several chunks.
    - "zb_v": two chunks in the V placement, backwards in two; every rank holds at most 2 * num_ranks activations. On
      a single rank it is "zb_h1".
    """
    assert min(num_ranks, num_chunks, num_microbatches) >= 1
    if kind == "gpipe":
        forwards = forward_order(num_ranks, num_chunks, num_microbatches)
        backwards = _backwards(Kind.BACKWARD, forwards, num_chunks)
        return [forwards + backwards for _ in range(num_ranks)]
    if kind == "1f1b":
        return _one_in_turn(Kind.BACKWARD, num_ranks, num_chunks, num_microbatches)
    return [list(actions) for actions in _zero_bubble(kind, num_ranks, num_chunks, num_microbatches)]


def forward_only(num_ranks: int, num_chunks: int, num_microbatches: int, *, v: bool = False) -> Schedule:
    """Each rank's actions when nothing is learned (evaluation); `v` is the V placement, of two chunks."""
    if v:
        passes = [v_passes(num_ranks, rank, num_microbatches) for rank in range(num_ranks)]
        return [[action for action in actions if action.kind is Kind.FORWARD] for actions in passes]
    return [forward_order(num_ranks, num_chunks, num_microbatches) for _ in range(num_ranks)]


@lru_cache(maxsize=4)
def _zero_bubble(kind: ScheduleKind, num_ranks: int, num_chunks: int, num_microbatches: int) -> Schedule:
    """Kept, since every step asks for it and it takes a play of the whole pipeline to find."""
    if kind == "zb_v" and num_ranks > 1:
        assert num_chunks == 2, "the V placement is of two chunks"
        passes = [v_passes(num_ranks, rank, num_microbatches) for rank in range(num_ranks)]
        return put_weights(passes, num_chunks, 2 * num_ranks, v=True)
    passes = _one_in_turn(Kind.INPUT, num_ranks, num_chunks, num_microbatches)
    most = in_flight(num_ranks, 0, num_chunks, num_microbatches, split=True)
    return put_weights(passes, num_chunks, most, v=False)


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


def in_flight(num_ranks: int, rank: int, num_chunks: int, num_microbatches: int, *, split: bool) -> int:
    """Activations that a rank holds, from F to B or I, when forwards and backwards go in turn: what fills the pipeline
    behind it, as in the published schedules. `split` is backwards in two: gradients come back sooner, so that several
    chunks want fewer.

    That it suffices for groups of any size is what the tests show.
    """
    after = num_ranks - rank - 1
    widest = max(map(len, groups(num_ranks, num_microbatches)))
    return (after if num_chunks == 1 or split else 2 * after) + (num_chunks - 1) * widest + 1


def _backwards(kind: Kind, forwards: Sequence[Action], num_chunks: int) -> list[Action]:
    """In the order of the forwards, from the last chunk to the first."""
    return [Action(kind, a.microbatch, num_chunks - 1 - a.chunk) for a in forwards]


def _one_in_turn(kind: Kind, num_ranks: int, num_chunks: int, num_microbatches: int) -> Schedule:
    """Forwards while fewer than `in_flight` are held, then the next forward and the next backward in turn."""
    forwards = forward_order(num_ranks, num_chunks, num_microbatches)
    backwards = _backwards(kind, forwards, num_chunks)
    schedule = []
    for rank in range(num_ranks):
        held = in_flight(num_ranks, rank, num_chunks, num_microbatches, split=kind is Kind.INPUT)
        warm_up = min(held - 1, len(forwards))
        turns = zip(forwards[warm_up:], backwards, strict=False)
        schedule.append([*forwards[:warm_up], *chain.from_iterable(turns), *backwards[len(forwards) - warm_up :]])
    return schedule
