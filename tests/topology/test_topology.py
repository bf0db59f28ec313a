"""Axes and groups in forked worlds: who is on which axis, and which groups a process makes."""

import pytest
import torch
import torch.distributed as dist

from megaswitch.comm.collectives import all_reduce_
from megaswitch.topology.config import LayoutConfig
from megaswitch.topology.grid import AXIS_NAMES, make_grid
from megaswitch.topology.topology import Topology, make_topology

CPU = torch.device("cpu")


def topology_here(**layout) -> Topology:
    return make_topology(make_grid(LayoutConfig(**layout), dist.get_world_size()), dist.get_rank(), CPU)


def describe(**layout) -> tuple[dict[str, tuple], int]:
    """Ranks, own position and the group's ranks by axis; and how many groups this process has come to know."""
    topology = topology_here(**layout)
    axes = {name: topology.axis(name) for name in AXIS_NAMES} | {"world": topology.world}
    for axis in axes.values():  # each group works, and holds whom it should
        total = torch.tensor([float(dist.get_rank())])
        if axis.group is not None:
            dist.all_reduce(total, group=axis.group)
            assert total.item() == sum(axis.ranks)
    told = {
        name: (axis.ranks, axis.rank, None if axis.group is None else tuple(dist.get_process_group_ranks(axis.group)))
        for name, axis in axes.items()
    }
    return told, len(dist.distributed_c10d._world.pg_map)


@pytest.mark.parametrize(
    ("n", "layout"),
    [
        (4, {"pp": 2, "tp": 2}),
        (4, {"ep": 2}),
        (4, {"tp": 2, "ep": 4}),
        (8, {"tp": 2, "pp": 2, "ep": 2}),
        (8, {"tp": 2, "ep": 4, "etp": 2}),
        (8, {"pp": 4, "ep": 2}),
    ],
)
def test_axes_and_groups(world, n, layout):
    grid = make_grid(LayoutConfig(**layout), n)
    for rank, (axes, groups) in enumerate(world(n, lambda: describe(**layout))):
        for name in AXIS_NAMES:
            ranks, position, group = axes[name]
            assert ranks == grid.ranks(rank, name)
            assert ranks[position] == rank
            assert group == (ranks if len(ranks) > 1 else None), name
        assert axes["world"][0] == tuple(range(n))
        lines = {grid.ranks(rank, name) for name in AXIS_NAMES if grid.size(name) > 1}
        assert groups == len(lines | {tuple(range(n))}), "a group that nobody here needs, or the same one twice"


def test_alone_there_are_no_groups_at_all():
    topology = make_topology(make_grid(LayoutConfig(), 1), 0, CPU)
    for name in AXIS_NAMES:
        axis = topology.axis(name)
        assert (axis.name, axis.size, axis.rank, axis.group, axis.first) == (name, 1, 0, None, True)
    assert topology.world.group is None
    assert not dist.is_initialized()


def test_sequence_parallelism_needs_tensor_parallelism(world):
    assert not make_topology(make_grid(LayoutConfig(), 1), 0, CPU, sequence_parallel=True).sequence_parallel

    def work():
        grid = make_grid(LayoutConfig(tp=2), 2)
        on, off = (make_topology(grid, dist.get_rank(), CPU, sequence_parallel=wish) for wish in (True, False))
        return on.sequence_parallel, off.sequence_parallel

    assert world(2, work) == [(True, False)] * 2


def test_pipeline_peers_find_each_other(world):
    """Sets that overlap, as those of a tied table and of relative biases do: a rank in two of them meets in the second
    a rank that is in that one alone."""

    def work():
        topology, found = topology_here(pp=4), []
        for ranks in [(0, 1), (0, 2, 3), (2, 3)]:
            axis = topology.pipeline_peers(ranks)
            total = torch.tensor([float(dist.get_rank() + 1)])
            found.append((axis.ranks, axis.rank, all_reduce_(total, axis).item()))
        return found

    assert world(4, work) == [
        [((0, 1), 0, 3.0), ((0, 2, 3), 0, 8.0), ((0,), 0, 1.0)],
        [((0, 1), 1, 3.0), ((1,), 0, 2.0), ((1,), 0, 2.0)],
        [((2,), 0, 3.0), ((0, 2, 3), 1, 8.0), ((2, 3), 0, 7.0)],
        [((3,), 0, 4.0), ((0, 2, 3), 2, 8.0), ((2, 3), 1, 7.0)],
    ]
