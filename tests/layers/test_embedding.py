"""Embedding and head over a vocabulary that tp does not divide, against the whole table."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from megaswitch.layers.embedding import EMBEDDING, HEAD, Embedding, Head
from megaswitch.layers.region import Region
from megaswitch.layers.weight_work import WeightWork
from megaswitch.model.config import ModelConfig
from megaswitch.params.derive import shard_range
from megaswitch.topology.topology import Axis, make_axis

VOCABULARY, WIDTH, BATCH, LENGTH = 13, 4, 2, 6


def number(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


def config(tied: bool = True) -> ModelConfig:
    return ModelConfig(vocab_size=VOCABULARY, d_model=WIDTH, tied_embeddings=tied)


def ids() -> Tensor:
    """Ids of all parts, the last one several times."""
    ids_BL = torch.arange(BATCH * LENGTH).view(BATCH, LENGTH)
    return torch.where(ids_BL % 5 == 4, VOCABULARY - 1, ids_BL)


def axis_here(n: int) -> Axis:
    return make_axis("tp", range(n), dist.get_rank())


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("split", [True, False])
def test_embedding(world, n, split):
    table = number(VOCABULARY, WIDTH).requires_grad_()
    ids_BL = ids()
    whole, weight = F.embedding(ids_BL, table), number(BATCH, LENGTH, WIDTH, seed=1)
    (whole * weight).sum().backward()

    def work():
        axis = axis_here(n)
        first, stop = shard_range(VOCABULARY, n, axis.rank)
        own = nn.Parameter(table.detach()[first:stop].clone())
        out = Embedding(config(), {EMBEDDING: own}, Region(axis, split and n > 1))(ids_BL, WeightWork())
        place = axis.rank if split and n > 1 else 0
        (out * weight.chunk(n if split else 1, 1)[place]).sum().backward()
        return out.detach(), own.grad

    ranks = world(n, work)
    outs = [out for out, _ in ranks]
    found = torch.cat(outs, 1) if split else outs[0]
    assert torch.equal(found, whole.detach()) and (split or all(torch.equal(out, outs[0]) for out in outs))
    assert far(table.grad, torch.cat([grad for _, grad in ranks])) < 1e-14


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_head(world, n, split, tied):
    """Each rank weighs its own columns; a tied table is scaled by d_model^-0.5."""
    matrix = number(*((VOCABULARY, WIDTH) if tied else (WIDTH, VOCABULARY))).requires_grad_()
    x = number(BATCH, LENGTH, WIDTH, seed=1).requires_grad_()
    logits = (x * WIDTH**-0.5) @ matrix.t() if tied else x @ matrix
    weight = number(BATCH, LENGTH, VOCABULARY, seed=2)
    (logits * weight).sum().backward()
    dim = 0 if tied else 1

    def work():
        axis = axis_here(n)
        first, stop = shard_range(VOCABULARY, n, axis.rank)
        own = nn.Parameter(matrix.detach().narrow(dim, first, stop - first).clone())
        outside = x.detach().chunk(n if split else 1, 1)[axis.rank if split else 0].clone().requires_grad_()
        head = Head(config(tied), {EMBEDDING if tied else HEAD: own}, Region(axis, split and n > 1))
        out = head(outside, WeightWork())
        assert head.first == first
        (out * weight[:, :, first:stop]).sum().backward()
        return out.detach(), own.grad, outside.grad

    outs, grads, of_inputs = zip(*world(n, work), strict=True)
    assert far(logits.detach(), torch.cat(outs, 2)) < 1e-14
    assert far(matrix.grad, torch.cat(grads, dim)) < 1e-14
    assert far(x.grad, torch.cat(of_inputs, 1) if split else of_inputs[-1]) < 1e-14


def test_logits_are_at_least_float32():
    table = nn.Parameter(number(VOCABULARY, WIDTH).bfloat16())
    head = Head(config(), {EMBEDDING: table}, Region(Axis("tp", 0, (0,)), False))
    x = number(1, 2, WIDTH).bfloat16()
    logits = head(x, WeightWork())
    assert logits.dtype == torch.float32
    assert torch.equal(logits, (x.float() * WIDTH**-0.5) @ table.detach().float().t())


def test_logits_of_the_compute_type():
    table = nn.Parameter(number(VOCABULARY, WIDTH).bfloat16())
    narrow = replace(config(), logits_dtype="compute")
    head = Head(narrow, {EMBEDDING: table}, Region(Axis("tp", 0, (0,)), False))
    x = number(1, 2, WIDTH).bfloat16()
    logits = head(x, WeightWork())
    assert logits.dtype == torch.bfloat16, "the loss widens them, a block at a time"
    assert torch.equal(logits, (x * WIDTH**-0.5) @ table.detach().t())
    assert not torch.equal(logits.float(), (x.float() * WIDTH**-0.5) @ table.detach().float().t())
