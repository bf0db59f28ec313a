"""Nodes that have different numbers of processes, and layouts that lie unevenly on nodes, are refused."""

import os
import socket
from collections import Counter
from itertools import product

import pytest
import torch
import torch.distributed as dist

from megaswitch.topology.config import LayoutConfig
from megaswitch.topology.grid import layout_problems, make_grid
from megaswitch.topology.nodes import Node, gather_nodes, node_problems, refuse_uneven
from megaswitch.topology.start import Place, process_group
from megaswitch.utils.errors import UserError

CPU = torch.device("cpu")
SIZES = (2, 2, 1)
"""Processes of three nodes that are not alike."""


@pytest.mark.parametrize("nodes", [[Node("a", 4)], [Node("a", 2), Node("b", 2)], [Node("h", 1)] * 4])
def test_nodes_alike_are_taken(nodes):
    refuse_uneven(nodes, 4)


def test_nodes_that_differ_are_named_with_what_to_do():
    with pytest.raises(UserError, match=r"1 on c, 2 on a, b\..*NPROC") as caught:
        refuse_uneven([Node("a", 2), Node("b", 2), Node("c", 1)], 5)
    assert caught.value.exit_code == 64


def test_of_many_nodes_the_few_are_named():
    nodes = [Node(f"n{i}", 7 if i == 99 else 8) for i in range(200)]
    with pytest.raises(UserError, match=r": 7 on n99, 8 on 199 nodes \(n0, n1, n2, n3, \.\.\.\)\."):
        refuse_uneven(nodes, 1599)


@pytest.mark.parametrize("nodes,told", [([Node("a", 3)], "say 3 on a;"), ([], "say nothing;")])
def test_a_world_that_the_nodes_do_not_fill_is_refused(nodes, told):
    with pytest.raises(UserError, match=f"WORLD_SIZE is 4, but .* {told} .*torchrun"):
        refuse_uneven(nodes, 4)


def test_every_rank_learns_of_all_nodes(world):
    def work():
        local = [i for size in SIZES for i in range(size)][dist.get_rank()]
        size = [size for size in SIZES for _ in range(size)][dist.get_rank()]
        return gather_nodes(local, size, CPU)

    assert world(sum(SIZES), work) == [[Node(socket.gethostname()[:64], size) for size in SIZES]] * sum(SIZES)


def test_processes_of_uneven_nodes_all_end_with_the_reason(world):
    """Each rank meets the others anew, as torchrun would have it do."""

    def work(port):
        rank = dist.get_rank()
        dist.destroy_process_group()
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        place = Place(rank, 3, *((0, 2), (1, 2), (0, 1))[rank], CPU)
        with pytest.raises(UserError, match="different numbers of processes: 1 on"), process_group(place, 30.0):
            pytest.fail("the run began")
        return dist.is_initialized()

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert world(3, work, port) == [False] * 3


@pytest.mark.parametrize(
    "layout,world,nodes_of,key,told",
    [
        (LayoutConfig(tp=2), 6, 3, "layout.tp", "nodes have 3 processes"),
        (LayoutConfig(tp=3), 12, 4, "layout.tp", "choose a layout.tp that divides 4, or a multiple of 4"),
        (LayoutConfig(pp=2), 6, 2, "layout.pp", "dp x tp = 3 processes"),
        (LayoutConfig(pp=2, tp=2), 24, 8, "layout.pp", "layout.pp can be 1, 3, 6, 12"),
    ],
)
def test_layouts_that_lie_unevenly_are_refused(layout, world, nodes_of, key, told):
    [problem] = node_problems(layout, world, nodes_of)
    assert problem.key == key and told in str(problem)


@pytest.mark.parametrize("nodes_of", [1, 2, 3, 4, 6])
def test_refused_are_exactly_the_layouts_with_a_group_unlike_the_others(nodes_of):
    """Counted over all groups: those of an axis have equal parts on each of their nodes, and equally many nodes."""
    seen = set()
    for world, pp, tp in product(range(nodes_of, 37, nodes_of), range(1, 7), range(1, 9)):
        layout = LayoutConfig(pp=pp, tp=tp)
        if layout_problems(layout, world):
            continue
        grid = make_grid(layout, world)
        groups = {(axis, grid.ranks(rank, axis)) for rank in range(world) for axis in ("tp", "dp")}
        parts = {key: Counter(rank // nodes_of for rank in key[1]).values() for key in groups}
        uneven = any(len(set(part)) > 1 for part in parts.values()) or any(
            len({len(part) for (name, _), part in parts.items() if name == axis}) > 1 for axis in ("tp", "dp")
        )
        assert bool(node_problems(layout, world, nodes_of)) == uneven, (world, pp, tp)
        seen.add(uneven)
    assert seen == ({False} if nodes_of == 1 else {False, True})
