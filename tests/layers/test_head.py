"""The head over a vocabulary that tp does not divide, against the whole matrix."""

from dataclasses import replace

import pytest
import torch
from layers.vocabulary import BATCH, LENGTH, VOCABULARY, WIDTH, axis_here, config, far, number
from torch import nn
from torch.nn import functional as F

from megaswitch.layers.embedding import EMBEDDING
from megaswitch.layers.head import HEAD, Head, HeadLoss
from megaswitch.layers.region import Region
from megaswitch.layers.weight_work import WeightWork
from megaswitch.ops.ops import BY_DEFINITION
from megaswitch.params.derive import shard_range
from megaswitch.topology.topology import Axis


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
    """Products of the compute type's operands, and no rounding after them."""
    table = nn.Parameter(number(VOCABULARY, WIDTH).bfloat16())
    head = Head(config(), {EMBEDDING: table}, Region(Axis("tp", 0, (0,)), False))
    x = number(1, 2, WIDTH).bfloat16().requires_grad_()
    logits = head(x, WeightWork())
    assert logits.dtype == torch.float32
    assert torch.equal(logits, (x * WIDTH**-0.5).float() @ table.detach().float().t())
    logits.sum().backward()
    assert x.grad.dtype == table.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_losses(world, n, split, tied):
    """The same matrix, whose part each rank has, and targets anywhere."""
    matrix = number(*((VOCABULARY, WIDTH) if tied else (WIDTH, VOCABULARY))).requires_grad_()
    x, factor = number(BATCH, LENGTH, WIDTH, seed=1).requires_grad_(), number(BATCH * LENGTH, seed=2)
    target = torch.arange(BATCH * LENGTH) % VOCABULARY
    logits = ((x * WIDTH**-0.5) @ matrix.t() if tied else x @ matrix).flatten(0, 1)
    nll, z = F.cross_entropy(logits, target, reduction="none"), 0.1 * logits.logsumexp(-1).square()
    ((nll + z) * factor).sum().backward()
    dim = 0 if tied else 1

    def work():
        axis, many = axis_here(n), replace(config(tied), z_loss=0.1)
        first, stop = shard_range(VOCABULARY, n, axis.rank)
        own = nn.Parameter(matrix.detach().narrow(dim, first, stop - first).clone())
        outside = x.detach().chunk(n if split else 1, 1)[axis.rank if split else 0].clone().requires_grad_()
        head = Head(many, {EMBEDDING if tied else HEAD: own}, Region(axis, split and n > 1))
        losses = HeadLoss(many, head)(outside, target, factor, WeightWork(), BY_DEFINITION)
        losses.objective.backward()
        return losses.nll_N, losses.z_N, own.grad, outside.grad

    nlls, zs, grads, of_inputs = zip(*world(n, work), strict=True)
    assert all(far(nll.detach(), found) < 1e-14 for found in nlls)
    assert all(far(z.detach(), found) < 1e-14 for found in zs)
    assert far(matrix.grad, torch.cat(grads, dim)) < 1e-14
    assert far(x.grad, torch.cat(of_inputs, 1) if split else of_inputs[-1]) < 1e-14
