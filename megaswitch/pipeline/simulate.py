"""Plays a schedule in time without computing anything: does it end, how long does it take, what does it hold."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from megaswitch.pipeline.actions import Action, Kind, needs
from megaswitch.topology.placement import place_of, stage_of

_BRINGS = {
    Kind.FORWARD: (Kind.FORWARD,),
    Kind.BACKWARD: (Kind.BACKWARD, Kind.INPUT),
    Kind.INPUT: (Kind.INPUT, Kind.BACKWARD),
    Kind.WEIGHT: (),
}
"""What others may wait for (`actions.needs`) that an action brings: B and I both bring the inputs' gradients."""


class ScheduleError(RuntimeError):
    """A schedule that cannot be carried out: an error of ours, not of a user."""


@dataclass(frozen=True)
class Costs:
    """What each stage takes, in any unit of time, and holds.

    Args:
        forward: time of F, by stage.
        inputs: time of I, by stage.
        weights: time of W, by stage; B takes `inputs` + `weights`.
        transfer: time of a message from one rank to another.
        live: what the activations of one micro-batch take (in bytes, or any measure), by stage; may be empty.
    """

    forward: Sequence[float]
    inputs: Sequence[float]
    weights: Sequence[float]
    transfer: float = 0.0
    live: Sequence[float] = ()

    @property
    def num_stages(self) -> int:
        """Stages of the whole model."""
        return len(self.forward)

    def time(self, kind: Kind, stage: int) -> float:
        """How long an action takes."""
        parts = {
            Kind.FORWARD: (self.forward,),
            Kind.INPUT: (self.inputs,),
            Kind.WEIGHT: (self.weights,),
            Kind.BACKWARD: (self.inputs, self.weights),
        }
        return sum(part[stage] for part in parts[kind])


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
        peak_live: per rank, most (micro-batch, chunk) pairs held at once, each from the beginning of its F to the end
            of its B or, where its backward is in two, of its W. What is never used backward is not held.
        peak_bytes: the same in the measure of `Costs.live`; 0 where that is empty.
    """

    spans: list[list[Span]]
    peak_live: list[int]
    peak_bytes: list[float]

    @property
    def makespan(self) -> float:
        """From the first beginning to the last end."""
        return max((span.end for spans in self.spans for span in spans), default=0.0)

    @property
    def bubble(self) -> float:
        """Share of all ranks' time in which they wait."""
        busy = sum(span.end - span.start for spans in self.spans for span in spans)
        return 1 - busy / (self.makespan * len(self.spans)) if self.makespan else 0.0


@dataclass
class _Play:
    """A schedule half played: when what was done so far ended."""

    num_ranks: int
    costs: Costs
    v: bool
    ends: dict[tuple[Kind, int, int], float] = field(default_factory=dict)

    def stage(self, rank: int, action: Action) -> int:
        return stage_of(self.v, self.num_ranks, rank, action.chunk)

    def missing(self, rank: int, action: Action) -> list[tuple[Kind, int, int]]:
        needed = needs(action, self.stage(rank, action), self.costs.num_stages)
        return [one for one in needed if one not in self.ends]

    def ready(self, rank: int, action: Action) -> float:
        """When all that an action needs has come to its rank."""
        needed = needs(action, self.stage(rank, action), self.costs.num_stages)
        return max((self.ends[one] + self._travel(rank, one[2]) for one in needed), default=0.0)

    def _travel(self, rank: int, source: int) -> float:
        return self.costs.transfer if place_of(self.v, self.num_ranks, source)[0] != rank else 0.0

    def do(self, rank: int, action: Action, start: float) -> Span:
        stage = self.stage(rank, action)
        end = start + self.costs.time(action.kind, stage)
        for kind in _BRINGS[action.kind]:
            self.ends[kind, action.microbatch, stage] = end
        return Span(action, start, end)

    def waits(self, rank: int, action: Action) -> str:
        places = [(kind, m, *place_of(self.v, self.num_ranks, stage)) for kind, m, stage in self.missing(rank, action)]
        names = ", ".join(f"{Action(kind, m, chunk)} of rank {other}" for kind, m, other, chunk in places)
        return f"rank {rank} at {action} waits for {names}"


def simulate(schedule: Sequence[Sequence[Action]], costs: Costs, *, v: bool = False) -> Timeline:
    """Carries out each rank's list in its order; `v` is the V placement.

    Raises ScheduleError, naming what each rank waits for, when the lists block one another.
    """
    assert len(costs.inputs) == len(costs.weights) == costs.num_stages and costs.num_stages % len(schedule) == 0
    play = _Play(len(schedule), costs, v)
    spans: list[list[Span]] = [[] for _ in schedule]
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(schedule):
            for action in actions[len(spans[rank]) :]:
                if play.missing(rank, action):
                    break
                free = spans[rank][-1].end if spans[rank] else 0.0
                spans[rank].append(play.do(rank, action, max(free, play.ready(rank, action))))
                moved = True
    blocked = [
        play.waits(rank, actions[len(done)])
        for rank, (actions, done) in enumerate(zip(schedule, spans, strict=True))
        if len(done) < len(actions)
    ]
    if blocked:
        raise ScheduleError("blocked: " + "; ".join(blocked))
    ones, sizes = [1] * costs.num_stages, costs.live or [0.0] * costs.num_stages
    return Timeline(
        spans,
        [round(_peak(play, rank, actions, ones)) for rank, actions in enumerate(schedule)],
        [_peak(play, rank, actions, sizes) for rank, actions in enumerate(schedule)],
    )


def _peak(play: _Play, rank: int, actions: Sequence[Action], sizes: Sequence[float]) -> float:
    """Most that a rank holds, by the size of each stage's activations."""
    used = {(a.microbatch, a.chunk) for a in actions if a.kind is not Kind.FORWARD}
    live = peak = 0.0
    for action in actions:
        if action.kind in (Kind.BACKWARD, Kind.WEIGHT):
            live -= sizes[play.stage(rank, action)]
        elif action.kind is Kind.FORWARD and (action.microbatch, action.chunk) in used:
            live += sizes[play.stage(rank, action)]
        peak = max(peak, live)
    return peak


def check_order(schedule: Sequence[Sequence[Action]], num_chunks: int, *, v: bool = False) -> None:
    """Raises ScheduleError unless, from any rank to any other, activations are sent in the order in which they are
    received, and gradients likewise: a transport that keeps messages in order (NCCL) hands out what is wanted."""
    num_ranks = len(schedule)
    sent = _messages(schedule, num_chunks, v, sending=True)
    wanted = _messages(schedule, num_chunks, v, sending=False)
    for route in sorted(sent.keys() | wanted.keys()):
        if sent[route] != wanted[route]:
            first = next((i for i, (a, b) in enumerate(zip(sent[route], wanted[route], strict=False)) if a != b), None)
            told = "one is missing" if first is None else f"{sent[route][first]} where {wanted[route][first]} is wanted"
            raise ScheduleError(f"{route[2]} from rank {route[0]} to rank {route[1]} of {num_ranks}: {told}")


def _messages(
    schedule: Sequence[Sequence[Action]], num_chunks: int, v: bool, sending: bool
) -> defaultdict[tuple[int, int, str], list[tuple[int, int]]]:
    """(micro-batch, border before a stage) in order, by (from, to, what)."""
    num_ranks = len(schedule)
    found: defaultdict[tuple[int, int, str], list[tuple[int, int]]] = defaultdict(list)
    for rank, actions in enumerate(schedule):
        for action in actions:
            stage = stage_of(v, num_ranks, rank, action.chunk)
            forward = action.kind is Kind.FORWARD
            border = stage + 1 if forward == sending else stage
            if action.kind is Kind.WEIGHT or not 0 < border < num_chunks * num_ranks:
                continue
            before, after = place_of(v, num_ranks, border - 1)[0], place_of(v, num_ranks, border)[0]
            source, target = (before, after) if forward else (after, before)
            found[source, target, "activations" if forward else "gradients"].append((action.microbatch, border))
    return found
