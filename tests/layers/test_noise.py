"""Dropout and named random numbers do not depend on how a batch is cut over ranks and micro-batches."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from megaswitch.layers.context import Context, dropout
from megaswitch.model.transformer import alone
from megaswitch.ops.reference.random import drop
from megaswitch.topology.topology import Axis, Topology

CPU = torch.device("cpu")
BATCH, LENGTH, WIDTH = 4, 6, 8


def on_tp(rank: int, size: int) -> Topology:
    """A place on a tp axis that never communicates."""
    return replace(alone(CPU), tp=Axis("tp", rank, tuple(range(size))))


def context(topology: Topology | None = None, samples: range = range(100, 100 + BATCH), **more) -> Context:
    fields = {
        "training": True,
        "seed": 3,
        "step": 5,
        "num_targets": 1.0,
        "num_groups": {"encoder": 1.0, "decoder": 1.0},
    }
    return Context(topology=topology or alone(CPU), samples_B=torch.tensor(samples), **{**fields, **more})


def ones() -> Tensor:
    return torch.ones(BATCH, LENGTH, WIDTH, dtype=torch.float64)


def whole(**more) -> Tensor:
    return dropout(ones(), 0.5, "site", context(**more), split=False)


def test_the_rest_is_scaled_up():
    assert set(whole().unique().tolist()) == {0.0, 2.0}
    x = torch.tensor([1.0, 2.0, 3.0])
    assert drop(x, 0.25, torch.tensor([0.25, 0.2499, 0.9])).tolist() == pytest.approx([4 / 3, 0.0, 4.0])


@pytest.mark.parametrize("size", [2, 3])
def test_parts_of_the_sequence(size):
    parts = [
        dropout(part, 0.5, "site", context(on_tp(rank, size)), split=True)
        for rank, part in enumerate(ones().chunk(size, 1))
    ]
    assert torch.equal(torch.cat(parts, 1), whole())


@pytest.mark.parametrize("size", [2, 4])
def test_parts_of_the_features(size):
    parts = [
        dropout(part, 0.5, "site", context(on_tp(r, size)), split=False, first_feature=r * part.shape[2])
        for r, part in enumerate(ones().chunk(size, 2))
    ]
    assert torch.equal(torch.cat(parts, 2), whole())


def test_parts_of_the_batch():
    parts = [dropout(ones()[:1], 0.5, "site", context(samples=range(i, i + 1)), split=False) for i in range(100, 104)]
    assert torch.equal(torch.cat(parts), whole())


def test_what_else_it_depends_on():
    assert torch.equal(whole(), whole())
    others = [whole(seed=4), whole(step=6), whole(samples=range(101, 105))]
    others.append(dropout(ones(), 0.5, "elsewhere", context(), split=False))
    assert not any(torch.equal(whole(), other) for other in others)


def test_off_in_evaluation_and_at_rate_0():
    x = ones()
    assert dropout(x, 0.5, "site", context(training=False), split=False) is x
    assert dropout(x, 0.0, "site", context(), split=False) is x


def test_the_type_of_activations_changes_no_mask():
    narrow = dropout(ones().bfloat16(), 0.5, "site", context(), split=False)
    assert narrow.dtype == torch.bfloat16
    assert torch.equal(narrow.double(), whole())


def test_gradients_take_the_same_mask():
    x = ones().requires_grad_()
    out = dropout(x, 0.5, "site", context(), split=False)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())
