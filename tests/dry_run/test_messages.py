"""Bytes of collectives by their closed formulas, as the watch sees them on axes of a world in thought."""

import torch

from megaswitch.comm.collectives import all_gather, all_reduce_, all_to_all, barrier, reduce_scatter, start_all_gather
from megaswitch.comm.p2p import Mailbox
from megaswitch.dry_run.watch import Watch
from megaswitch.topology.config import LayoutConfig
from megaswitch.topology.fake import fake_world
from megaswitch.topology.grid import make_grid
from megaswitch.topology.topology import make_topology, own_groups

META = torch.device("meta")


def test_what_each_counts():
    watch, rank = Watch(played=True), 13
    grid = make_grid(LayoutConfig(pp=2, tp=2, ep=4), 16)
    with fake_world(rank, 16), own_groups(), watch.watching():
        axes = make_topology(grid, rank, META)
        rows = torch.empty(12, 5, device=META)  # 240 bytes
        all_reduce_(rows, axes.world)
        assert all_gather(rows, axes.tp).shape == (24, 5)
        assert reduce_scatter(rows, axes.dp).shape == (3, 5)
        own = grid.index(rank, "ep")
        send = [1, 2, 3, 6]
        assert all_to_all(rows, axes.ep, send, [2, 2, 2, 2]).shape == (8, 5)
        Mailbox(axes.pp).send(rows.to(torch.bfloat16), 0, tag=1)
        barrier(axes.tp)
    told = {key: (t.count, t.bytes, t.wire) for key, t in watch.traffic.items()}
    assert told == {
        ("world", "all_reduce"): (1, 240, 2 * 240 * 15 / 16),
        ("tp", "all_gather"): (1, 480, 240),
        ("dp", "reduce_scatter"): (1, 240, 180),
        ("ep", "all_to_all"): (1, 240, 240 - 20 * send[own]),
        ("pp", "send"): (1, 120, 120),
        ("tp", "barrier"): (1, 0, 0),
    }


def test_a_collective_under_way_holds_its_tensors():
    watch = Watch(played=True)
    with fake_world(0, 4), watch.watching():
        axes = make_topology(make_grid(LayoutConfig(), 4), 0, META)
        pending = start_all_gather(torch.empty(1000, device=META), axes.dp)
        assert sum(watch.memory.live) == 4000 + 16000
        pending.wait()
        torch.empty(0, device=META)  # the watch lets go with the next operation
        assert sum(watch.memory.live) == 16000
