"""Axes with their process groups, and the Topology that is handed to everything that communicates."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from megaswitch.topology.grid import AxisName, Grid

_OWN_GROUPS: ContextVar[bool] = ContextVar("own_groups", default=False)


@contextmanager
def own_groups() -> Iterator[None]:
    """Inside, each axis is given a process group of its own, named after it, though another one has the same ranks:
    what is counted by group is then counted by axis."""
    token = _OWN_GROUPS.set(True)
    try:
        yield
    finally:
        _OWN_GROUPS.reset(token)


@dataclass(frozen=True)
class Axis:
    """One line of ranks along a mesh axis. Size 1 has no group, and every primitive is the identity on it."""

    name: str
    rank: int
    ranks: tuple[int, ...]
    group: dist.ProcessGroup | None = None

    @property
    def size(self) -> int:
        """Ranks on the axis."""
        return len(self.ranks)

    @property
    def first(self) -> bool:
        """Whether this is the axis's first rank, which speaks for what all its ranks hold alike."""
        return self.rank == 0


def make_axis(name: str, ranks: Sequence[int], rank: int, timeout: timedelta | None = None) -> Axis:
    """An axis over the global `ranks`, to be called by exactly these; `rank` is this process's global rank."""
    ranks = tuple(ranks)
    group = None
    if len(ranks) > 1:
        everyone = len(ranks) == dist.get_world_size() and not _OWN_GROUPS.get()
        group = (
            dist.group.WORLD
            if everyone
            else dist.new_group(list(ranks), timeout=timeout, use_local_synchronization=True, group_desc=name)
        )
    return Axis(name, ranks.index(rank), ranks, group)


def make_channels(axis: Axis, count: int, timeout: timedelta | None = None) -> list[dist.ProcessGroup | None]:
    """Further groups over an axis's ranks for one-way transfers, on NCCL, where a receive holds up what is sent after
    it in the same group; elsewhere None, which stands for the axis's own group."""
    if axis.size == 1 or dist.get_backend(axis.group) != "nccl":
        return [None] * count
    ranks = list(axis.ranks)
    return [
        dist.new_group(ranks, timeout=timeout, use_local_synchronization=True, group_desc=f"{axis.name} channel {i}")
        for i in range(count)
    ]


@dataclass(frozen=True)
class Topology:
    """This process's place in the grid: one axis of each name, and the whole world as an axis."""

    grid: Grid
    rank: int
    device: torch.device
    sequence_parallel: bool
    pp: Axis
    dp: Axis
    tp: Axis
    edp: Axis
    ep: Axis
    etp: Axis
    world: Axis

    def axis(self, name: AxisName) -> Axis:
        """The axis of that name."""
        axis: Axis = getattr(self, name)
        return axis

    def pipeline_peers(self, pp_ranks: Sequence[int], timeout: timedelta | None = None) -> Axis:
        """An axis over this pipeline's ranks at the positions `pp_ranks`. All ranks of the world call it, those outside
        too: torch names a group by its ranks and by how many groups the caller has, and the members of the next one
        would not find each other; they get an axis, and torch a group, of themselves alone."""
        if self.pp.rank not in pp_ranks:
            dist.new_group([self.rank], timeout=timeout, use_local_synchronization=True, group_desc="none")
            return Axis("none", 0, (self.rank,))
        ranks = [self.pp.ranks[i] for i in pp_ranks]
        return make_axis("pp" + ",".join(map(str, pp_ranks)), ranks, self.rank, timeout)


def make_topology(
    grid: Grid,
    rank: int,
    device: torch.device,
    *,
    sequence_parallel: bool = True,
    timeout: timedelta | None = None,
) -> Topology:
    """Create the groups that `rank` belongs to, and no others; a world larger than 1 must be initialised."""
    made: dict[tuple[int, ...], Axis] = {}

    def axis(name: AxisName) -> Axis:
        ranks = grid.ranks(rank, name)
        if ranks not in made or _OWN_GROUPS.get():
            made[ranks] = make_axis(name, ranks, rank, timeout)
        return Axis(name, ranks.index(rank), ranks, made[ranks].group)

    return Topology(
        grid=grid,
        rank=rank,
        device=device,
        sequence_parallel=sequence_parallel and grid.tp > 1,
        world=make_axis("world", range(grid.world), rank, timeout),
        pp=axis("pp"),
        dp=axis("dp"),
        tp=axis("tp"),
        edp=axis("edp"),
        ep=axis("ep"),
        etp=axis("etp"),
    )
