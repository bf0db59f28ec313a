"""Zero-bubble schedules: the weights' gradients, which nobody waits for, are put where a rank would else wait.

Each rank has a fixed order of forwards (F) and backwards of the inputs (I); what is free is where each W goes.
"""

from collections import deque
from dataclasses import dataclass, field
from itertools import count

from megaswitch.pipeline.actions import Action, Kind, Schedule, needs
from megaswitch.topology.placement import stage_of


@dataclass
class _Rank:
    """What a rank has done, what of its order is left, and the weight gradients it has put off."""

    number: int
    left: deque[Action]
    done: list[Action] = field(default_factory=list)
    put_off: deque[Action] = field(default_factory=deque)
    live: int = 0


def put_weights(passes: Schedule, num_chunks: int, most: int, *, v: bool) -> Schedule:
    """`passes` (each rank's F and I in order) with every W in its place, for passes that take one unit of time each.

    A rank does its next pass when what it needs is there and a forward would not make it hold more than `most`
    activations (from F to the end of W); else the oldest W; and waits where there is none. No rank is blocked for
    ever where `passes` alone can be carried out and hold at most `most` from F to I: who holds too much has a W to do.
    """
    ranks = [_Rank(number, deque(actions)) for number, actions in enumerate(passes)]
    ends: dict[tuple[Kind, int, int], int] = {}
    now = 0
    while any(rank.left or rank.put_off for rank in ranks):
        for rank in ranks:
            if rank.left and _can_begin(rank, ends, now, len(ranks), num_chunks, most, v):
                action = rank.left.popleft()
                ends[action.kind, action.microbatch, stage_of(v, len(ranks), rank.number, action.chunk)] = now + 1
                rank.live += action.kind is Kind.FORWARD
                rank.done.append(action)
                if action.kind is Kind.INPUT:
                    rank.put_off.append(Action(Kind.WEIGHT, action.microbatch, action.chunk))
            elif rank.put_off:
                rank.live -= 1
                rank.done.append(rank.put_off.popleft())
        now += 1
    return [rank.done for rank in ranks]


def _can_begin(
    rank: _Rank, ends: dict[tuple[Kind, int, int], int], now: int, num_ranks: int, num_chunks: int, most: int, v: bool
) -> bool:
    action = rank.left[0]
    if action.kind is Kind.FORWARD and rank.live >= most:
        return False
    stage = stage_of(v, num_ranks, rank.number, action.chunk)
    return all(ends.get(one, now + 1) <= now for one in needs(action, stage, num_ranks * num_chunks))


def v_passes(num_ranks: int, rank: int, num_microbatches: int) -> list[Action]:
    """F and I of a rank in the V placement, holding at most 2 * num_ranks activations from F to I.

    From here to the last rank and back it is 2 * `behind` - 1 stages: so many forwards of the first chunk fill the
    way. With those of the second chunk, that come back, the way to the first rank fills as well, which holds the last
    stage; from then on one pass of each sort follows the other. Where micro-batches are fewer, the order is that of
    as many as fill the pipeline, without those that are not there.
    """
    behind = num_ranks - rank
    full = 2 * num_ranks - 1
    f0, f1, i0, i1 = ((kind, chunk) for kind in (Kind.FORWARD, Kind.INPUT) for chunk in (0, 1))
    order = [f0] * (2 * behind - 1) + [f1, f0] * rank + [f1, i1] * behind
    order += [f0, i0, f1, i1] * (max(num_microbatches, full) - full + rank)
    order += [i0, f1, i1] * (behind - 1) + [i0, i1] * rank + [i0] * behind
    numbers = {sort: count() for sort in (f0, f1, i0, i1)}
    actions = [Action(kind, next(numbers[kind, chunk]), chunk) for kind, chunk in order]
    return [action for action in actions if action.microbatch < num_microbatches]
