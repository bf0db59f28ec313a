"""Zero-bubble schedules: the weights' gradients, which nobody waits for, are put where a rank would else wait.

Both schedules play the pipeline with every pass taking one unit of time. A rank does the first pass that can begin,
looking through its lanes in the order of their importance; where none can, it does the oldest weight gradients it
has put off; where there are none, it waits. A lane is one order of passes, the same on every rank, and what two ranks
send each other lies in one lane of each: messages arrive in the order in which they are wanted.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from megaswitch.pipeline.actions import Action, Kind, Schedule, needs
from megaswitch.topology.placement import stage_of


@dataclass(frozen=True)
class Lane:
    """Passes in the order in which every rank does them.

    Args:
        actions: forwards, or backwards of the inputs.
        room: a forward begins only while fewer activations than this are held (from F to the end of its W).
    """

    actions: Sequence[Action]
    room: int | None = None


@dataclass
class _Rank:
    """What a rank has done so far."""

    number: int
    next: list[int]
    done: list[Action] = field(default_factory=list)
    put_off: deque[Action] = field(default_factory=deque)
    live: int = 0


def play(lanes: Sequence[Lane], num_ranks: int, num_chunks: int, v: bool) -> Schedule:
    """Each rank's actions, W included, when every pass takes one unit of time; `lanes`, most important first."""
    ranks = [_Rank(r, [0] * len(lanes)) for r in range(num_ranks)]
    passes = [action for lane in lanes for action in lane.actions]
    total = len(passes) + sum(a.kind is Kind.INPUT for a in passes)
    ends: dict[tuple[Kind, int, int], int] = {}
    now = 0
    while any(len(rank.done) < total for rank in ranks):
        for rank in ranks:
            action = _choose(rank, lanes, ends, now, num_ranks, num_chunks, v)
            if action is not None:
                rank.done.append(action)
                stage = stage_of(v, num_ranks, rank.number, action.chunk)
                ends[action.kind, action.microbatch, stage] = now + 1
        now += 1
    return [rank.done for rank in ranks]


def _choose(
    rank: _Rank,
    lanes: Sequence[Lane],
    ends: dict[tuple[Kind, int, int], int],
    now: int,
    num_ranks: int,
    num_chunks: int,
    v: bool,
) -> Action | None:
    """What a rank does at `now`, if anything."""
    for i, lane in enumerate(lanes):
        if rank.next[i] == len(lane.actions) or (lane.room is not None and rank.live >= lane.room):
            continue
        action = lane.actions[rank.next[i]]
        stage = stage_of(v, num_ranks, rank.number, action.chunk)
        if all(ends.get(one, now + 1) <= now for one in needs(action, stage, num_ranks * num_chunks)):
            rank.next[i] += 1
            rank.live += action.kind is Kind.FORWARD
            if action.kind is Kind.INPUT:
                rank.put_off.append(Action(Kind.WEIGHT, action.microbatch, action.chunk))
            return action
    if rank.put_off:
        rank.live -= 1
        return rank.put_off.popleft()
    return None


def zb_h1(forwards: Sequence[Action], num_ranks: int, num_chunks: int, room: int) -> Schedule:
    """1F1B's order of forwards and of backwards, with at most `room` activations held on every rank.

    No rank is blocked for ever where `room` is what 1F1B holds at most: of all that is left to do, what 1F1B would
    do first can begin, since all it needs comes before it in 1F1B as well.
    """
    inputs = [Action(Kind.INPUT, a.microbatch, num_chunks - 1 - a.chunk) for a in forwards]
    return play([Lane(inputs), Lane(forwards, room)], num_ranks, num_chunks, v=False)


def zb_v(num_ranks: int, num_microbatches: int) -> Schedule:
    """Two chunks in the V placement, every rank holding at most 2 * num_ranks activations.

    The first chunk's forwards leave one place free for the second's. So no rank is blocked for ever: on the first
    rank a full house holds a second chunk, whose backward needs nobody; it brings the next rank its gradients, and
    so on up to the last, whose first chunk's backward comes next and goes down again.
    """
    most = 2 * num_ranks
    lanes = [
        Lane(_through(Kind.FORWARD, 1, num_microbatches), most),
        Lane(_through(Kind.INPUT, 1, num_microbatches)),
        Lane(_through(Kind.FORWARD, 0, num_microbatches), most - 1),
        Lane(_through(Kind.INPUT, 0, num_microbatches)),
    ]
    return play(lanes, num_ranks, 2, v=True)


def v_forwards(num_ranks: int, num_microbatches: int) -> Schedule:
    """Forwards alone in the V placement."""
    lanes = [Lane(_through(Kind.FORWARD, chunk, num_microbatches)) for chunk in (1, 0)]
    return play(lanes, num_ranks, 2, v=True)


def _through(kind: Kind, chunk: int, num_microbatches: int) -> list[Action]:
    return [Action(kind, m, chunk) for m in range(num_microbatches)]
