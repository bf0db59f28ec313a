"""A world in thought: axes and groups of any rank of any world, in one process."""

import pytest
import torch
import torch.distributed as dist

from megaswitch.topology.config import LayoutConfig
from megaswitch.topology.fake import fake_world
from megaswitch.topology.grid import AXIS_NAMES, make_grid
from megaswitch.topology.topology import make_topology, own_groups


@pytest.mark.parametrize("rank", [0, 777, 2047])
def test_any_rank_of_2048_has_its_axes(rank):
    grid = make_grid(LayoutConfig(tp=2, pp=4, ep=256), 2048)
    with fake_world(rank, 2048):
        topology = make_topology(grid, rank, torch.device("meta"))
        for name in AXIS_NAMES:
            axis = topology.axis(name)
            assert axis.ranks == grid.ranks(rank, name) and axis.ranks[axis.rank] == rank
            assert axis.group is None or dist.get_process_group_ranks(axis.group) == list(axis.ranks)
    assert not dist.is_initialized()


def test_own_groups_tell_axes_of_the_same_ranks_apart():
    with fake_world(3, 8):
        grid = make_grid(LayoutConfig(ep=8), 8)
        shared = make_topology(grid, 3, torch.device("meta"))
        with own_groups():
            apart = make_topology(grid, 3, torch.device("meta"))
        assert shared.dp.group is shared.ep.group is shared.world.group
        assert len({id(axis.group) for axis in (apart.dp, apart.ep, apart.world)}) == 3
        assert [axis.group.group_desc for axis in (apart.dp, apart.ep, apart.world)] == ["dp", "ep", "world"]
