"""Parameters that several pipeline stages hold stay equal bit for bit, in weights, masters and moments."""

from dataclasses import replace

import pytest
import torch
from parity.harness import RandomSource, place, small

from megaswitch.comm.collectives import assert_replicated
from megaswitch.topology.config import LayoutConfig
from megaswitch.train.batches import read
from megaswitch.train.step import train_step
from megaswitch.train.system import build


def train(layout: LayoutConfig, optimizer: str, dtype: str) -> list[str]:
    """The names of what is shared here, after a few steps in which each stage gives its own part of the gradient."""
    config = small()
    config = replace(
        config,
        layout=layout,
        train=replace(config.train, dtype=dtype),
        optim=replace(config.optim, name=optimizer, clip=1.0),
    )
    system, source = build(config, place()), RandomSource(config.model)
    before = {name: p.detach().clone() for name, p in system.buckets.params.items()}
    for step in range(3):
        train_step(system, read(system, source, 8 * step), step)
    shared = [b for b in system.buckets.buckets if b.kind.owners]
    peers_of = {e.spec.name: system.buckets.peers[b.kind.owners] for b in shared for e in b.entries}
    assert all(peers.size > 1 for peers in peers_of.values())
    for bucket in shared:
        for values, what in ((bucket.weights, "weights"), (bucket.master, "masters")):
            assert_replicated(values, system.buckets.peers[bucket.kind.owners], what)
    for tensor in system.optimizer.state():
        if peers := peers_of.get(tensor.name.split("/", 1)[1]):
            assert_replicated(tensor.view, peers, tensor.name)
    for name in peers_of:
        assert not torch.equal(before[name], system.buckets.params[name]), f"{name} did not move"
    return sorted(entry.spec.name for bucket in shared for entry in bucket.entries)


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_stages(world, optimizer, dtype):
    names = ["decoder.relative_bias", "embedding", "encoder.relative_bias"]
    assert world(2, train, LayoutConfig(pp=2), optimizer, dtype) == [names] * 2


def test_one_cut_shares_less(world):
    """The bias of a stack that lies on one rank is not shared."""
    found = world(2, train, LayoutConfig(pp=2, chunks=1), "adafactor", "float32")
    assert found[0] == found[1]
    assert "embedding" in found[0] and "decoder.relative_bias" not in found[0]


def test_with_data_and_tensor_parallelism(world):
    names = ["decoder.relative_bias", "embedding", "encoder.relative_bias"]
    assert world(8, train, LayoutConfig(pp=2, tp=2, ep=2), "adafactor", "float32") == [names] * 8
