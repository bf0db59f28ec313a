"""Plays a schedule in time without computing anything: does it end, how long does it take, what does it hold."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from megaswitch.pipeline.schedule import Action, Kind, needs


class ScheduleError(RuntimeError):
    """A schedule that cannot be carried out: an error of ours, not of a user."""


@dataclass(frozen=True)
class Span:
    """An action and when it begins and ends, in the unit of the costs."""

    action: Action
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """What a schedule comes to.

    Args:
        spans: each rank's actions in order.
        peak_live: per rank, most (micro-batch, chunk) pairs whose forward has begun and whose backward has not ended.
    """

    spans: list[list[Span]]
    peak_live: list[int]

    @property
    def makespan(self) -> float:
        """From the first beginning to the last end."""
        return max((span.end for spans in self.spans for span in spans), default=0.0)

    @property
    def bubble(self) -> float:
        """Share of all ranks' time in which they wait."""
        busy = sum(span.end - span.start for spans in self.spans for span in spans)
        return 1 - busy / (self.makespan * len(self.spans)) if self.makespan else 0.0


def simulate(
    schedule: Sequence[Sequence[Action]],
    forward: Sequence[float],
    backward: Sequence[float],
    transfer: float = 0.0,
) -> Timeline:
    """Carries out each rank's list in its order, a message taking `transfer` from rank to rank.

    `forward` and `backward` are the times of each stage; the chunks a rank are stages / ranks. Raises
    ScheduleError, naming what each rank waits for, when the lists block one another.
    """
    num_ranks, num_stages = len(schedule), len(forward)
    assert len(backward) == num_stages and num_stages % num_ranks == 0
    ends: dict[tuple[Kind, int, int], float] = {}
    spans: list[list[Span]] = [[] for _ in schedule]
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(schedule):
            while len(spans[rank]) < len(actions):
                action = actions[len(spans[rank])]
                stage = action.chunk * num_ranks + rank
                needed = needs(action, stage, num_stages)
                if any(one not in ends for one in needed):
                    break
                late = [ends[one] + (transfer if one[2] != stage and num_ranks > 1 else 0.0) for one in needed]
                start = max([spans[rank][-1].end if spans[rank] else 0.0, *late])
                end = start + (forward if action.kind is Kind.FORWARD else backward)[stage]
                ends[action.kind, action.microbatch, stage] = end
                spans[rank].append(Span(action, start, end))
                moved = True
    left = {rank: actions[len(spans[rank]) :] for rank, actions in enumerate(schedule)}
    blocked = [_waits(rank, rest[0], num_ranks, num_stages, ends) for rank, rest in left.items() if rest]
    if blocked:
        raise ScheduleError("blocked: " + "; ".join(blocked))
    return Timeline(spans, [_peak(actions) for actions in schedule])


def check_order(schedule: Sequence[Sequence[Action]], num_chunks: int) -> None:
    """Raises ScheduleError unless, from any rank to any other, activations are sent in the order in which they are
    received, and gradients likewise: a transport that keeps messages in order (NCCL) hands out what is wanted."""
    num_ranks = len(schedule)
    sent, wanted = _messages(schedule, num_chunks, sending=True), _messages(schedule, num_chunks, sending=False)
    for route in sorted(sent.keys() | wanted.keys()):
        if sent[route] != wanted[route]:
            first = next((i for i, (a, b) in enumerate(zip(sent[route], wanted[route], strict=False)) if a != b), None)
            told = "one is missing" if first is None else f"{sent[route][first]} where {wanted[route][first]} is wanted"
            raise ScheduleError(f"{route[2]} from rank {route[0]} to rank {route[1]} of {num_ranks}: {told}")


def _messages(
    schedule: Sequence[Sequence[Action]], num_chunks: int, sending: bool
) -> defaultdict[tuple[int, int, str], list[tuple[int, int]]]:
    """(micro-batch, border before a stage) in order, by (from, to, what)."""
    num_ranks = len(schedule)
    found: defaultdict[tuple[int, int, str], list[tuple[int, int]]] = defaultdict(list)
    for rank, actions in enumerate(schedule):
        for action in actions:
            stage = action.chunk * num_ranks + rank
            forward = action.kind is Kind.FORWARD
            border = stage + 1 if forward == sending else stage
            if not 0 < border < num_chunks * num_ranks:
                continue
            source, target = ((border - 1) % num_ranks, border % num_ranks)[:: 1 if forward else -1]
            found[source, target, "activations" if forward else "gradients"].append((action.microbatch, border))
    return found


def _waits(
    rank: int, action: Action, num_ranks: int, num_stages: int, ends: dict[tuple[Kind, int, int], float]
) -> str:
    missing = [n for n in needs(action, action.chunk * num_ranks + rank, num_stages) if n not in ends]
    names = ", ".join(f"{k.value}{m}.{stage // num_ranks} of rank {stage % num_ranks}" for k, m, stage in missing)
    return f"rank {rank} at {action} waits for {names}"


def _peak(actions: Sequence[Action]) -> int:
    """Most activations held; what is never used backward is not held."""
    used = {(a.microbatch, a.chunk) for a in actions if a.kind is Kind.BACKWARD}
    live = peak = 0
    for action in actions:
        if action.kind is Kind.BACKWARD:
            live -= 1
        elif (action.microbatch, action.chunk) in used:
            live += 1
        peak = max(peak, live)
    return peak
