"""Recomputing activations changes neither a gradient nor what is recorded, noise and drops included."""

from dataclasses import replace

import pytest
import torch
from parity.harness import RandomSource, small

from megaswitch.topology.start import Place
from megaswitch.train.batches import read
from megaswitch.train.step import compute_gradients
from megaswitch.train.system import build


def gradients(recompute: str):
    config = small(jitter=0.05, dropout=0.2, router_z_loss_coef=0.01)
    config = replace(config, train=replace(config.train, recompute=recompute, global_batch=4))
    system = build(config, Place(0, 1, 0, 1, torch.device("cpu")))
    record = compute_gradients(system, read(system, RandomSource(config.model), 0), 0)
    return record, {name: p.grad.clone() for name, p in system.buckets.params.items()}


@pytest.fixture(scope="module")
def kept():
    return gradients("none")


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_nothing_changes(kept, recompute):
    record, grads = gradients(recompute)
    assert record == kept[0]
    assert record.dropped_share > 0
    for name, grad in grads.items():
        assert torch.equal(grad, kept[1][name]), name


def test_something_is_recomputed():
    """Fewer activations stay between the passes."""

    def saved(recompute: str) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            gradients(recompute)
        return sum(sizes)

    assert saved("none") > saved("selective") > 0
