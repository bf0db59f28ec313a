"""Answers in a device's place: what one rank is said to send is what the other is said to receive."""

from dataclasses import replace

import pytest
import torch
from parity.harness import small

from megaswitch.dry_run.routing import Answers, dispatched_tokens
from megaswitch.model.config import STACKS
from megaswitch.topology.config import LayoutConfig
from megaswitch.topology.grid import make_grid

LAYOUTS = [
    (4, {"ep": 4}, {}),
    (4, {"ep": 2}, {"router": "top2", "second_policy": "all", "capacity_factor": 3.0}),
    (8, {"tp": 2, "ep": 8}, {}),
    (8, {"tp": 4, "ep": 4}, {"router": "noisy_topk", "capacity_factor": 3.0}),
    (8, {"tp": 2, "ep": 4, "etp": 2}, {"capacity_factor": None}),
    (8, {"pp": 2, "ep": 4}, {"capacity_factor": 0.5}),
]


def config_of(layout, model):
    base = small(**{"capacity_factor": 1.25, **model})
    return replace(base, layout=LayoutConfig(**layout), train=replace(base.train, micro_batch=2, global_batch=64))


def splits(config, world, rank, routing, stack):
    """[2, R, X] of a rank, as the layers read it."""
    grid = make_grid(config.layout, world)
    shape = (2, grid.ep, config.model.num_experts // grid.ep)
    answers = Answers(config, grid, rank, routing, lambda: stack)
    values = torch.tensor(answers("expert_splits", torch.empty(shape, dtype=torch.int64, device="meta")))
    assert values.shape == shape and (values >= 0).all()
    return values


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize(("world", "layout", "model"), LAYOUTS)
def test_balanced_ranks_agree_with_each_other(world, layout, model, stack):
    config = config_of(layout, model)
    grid = make_grid(config.layout, world)
    line = grid.ranks(0, "ep")
    told = [splits(config, world, rank, "balanced", stack) for rank in line]
    for i in range(len(line)):
        for j in range(len(line)):
            assert torch.equal(told[i][0, j], told[j][1, i])
    by_expert = torch.cat([rank[1].sum(0) for rank in told])
    assert by_expert.max() - by_expert.min() <= 1
    rows = sum(dispatched_tokens(config, grid, rank, stack) for rank in line)
    served = {"top2": 2, "noisy_topk": 2}.get(config.model.router, 1)
    kept = by_expert.sum()
    slots = config.model.slots(config.model.length(stack), training=True)
    room = rows * served if slots is None else 2 * slots * config.model.num_experts * len(line)
    assert kept == min(rows * served, room)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize(("world", "layout", "model"), LAYOUTS)
def test_the_worst_is_all_that_finds_a_slot_here(world, layout, model, stack):
    config, rank = config_of(layout, model), world - 1
    grid = make_grid(config.layout, world)
    sent, received = splits(config, world, rank, "worst", stack)
    even = splits(config, world, rank, "balanced", stack)
    own = grid.index(rank, "ep")
    assert received.sum() >= even[1].sum() and torch.equal(sent[own], received[own])
    slots = config.model.slots(config.model.length(stack), training=True)
    if slots is None:
        rows = sum(dispatched_tokens(config, grid, r, stack) for r in grid.ranks(rank, "ep"))
        assert received.sum() == rows
    else:  # two groups of one sequence each; of a group that tp ranks share, each rounds its share up
        sharers = grid.tp if grid.etp == 1 else 1
        most = 2 * slots * (grid.ep / sharers) + grid.ep
        assert received.sum(0).max() <= most


def test_tokens_without_what_tp_pads():
    config = config_of({"tp": 4, "ep": 4}, {})
    grid = make_grid(config.layout, 4)
    encoder, decoder = ([dispatched_tokens(config, grid, rank, stack) for rank in range(4)] for stack in STACKS)
    assert encoder == [2 * 3] * 4
    assert decoder == [2 * 2, 2 * 2, 2 * 2, 2 * 1]  # 7 tokens in parts of 2


def test_other_reads_are_finite_zeros():
    config = config_of({}, {})
    answers = Answers(config, make_grid(config.layout, 1), 0, "balanced", lambda: "encoder")
    assert answers("record", torch.empty(2, 3, dtype=torch.float64, device="meta")) == [[0.0] * 3] * 2
