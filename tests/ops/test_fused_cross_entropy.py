"""The kernels of cross-entropy against their definitions, and these against torch's."""

import pytest
import torch
from ops.libraries import DTYPES, LIBRARIES, ROUNDING, far, load
from torch.nn import functional as F

from megaswitch.layers.cross_entropy import cross_entropy
from megaswitch.ops.fused import cross_entropy as fused
from megaswitch.ops.ops import Ops
from megaswitch.ops.reference import cross_entropy as reference
from megaswitch.topology.topology import Axis

SHAPES = [(0, 7), (1, 1), (4, 33), (9, 1024), (5, 3001)]
Z_LOSS = 0.3
ALONE = Axis("tp", 0, (0,))


def case(shape, dtype, scale=1.0, at=0.0):
    """Logits; targets of which some are of another part of the vocabulary; log-partitions of the whole; gradients."""
    generator = torch.Generator().manual_seed(shape[1])
    logits = (torch.randn(shape, generator=generator, dtype=torch.float64) * scale + at).to(dtype)
    target = torch.randint(-shape[1] // 3 - 1, shape[1] + shape[1] // 3 + 1, shape[:1], generator=generator)
    wide = torch.promote_types(dtype, torch.float32)
    log_z = (logits.double().logsumexp(1) + 0.5).to(wide)
    grad = torch.randn(shape[0], generator=generator, dtype=torch.float64).to(wide)
    return logits, target, log_z, grad


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("scale", "at"), [(1.0, 0.0), (30.0, 0.0), (5.0, -1e4)])
def test_both_passes(library, dtype, shape, scale, at):
    kernels = load(library)
    logits, target, log_z, grad = case(shape, dtype, scale, at)
    expected, found = (
        f(logits, target)
        for f in (reference.cross_entropy_statistics, lambda *a: fused.cross_entropy_statistics(kernels, *a))
    )
    rounding = ROUNDING[torch.promote_types(dtype, torch.float32)]
    assert torch.equal(expected.greatest_N, found.greatest_N)
    assert torch.equal(expected.at_target_N, found.at_target_N)
    if shape[0]:
        assert far(expected.sum_N, found.sum_N) < rounding
    a, b = logits.clone(), logits.clone()
    reference.cross_entropy_gradient_(a, target, log_z, grad, Z_LOSS)
    fused.cross_entropy_gradient_(kernels, b, target, log_z, grad, Z_LOSS)
    if shape[0]:
        assert far(a, b) < ROUNDING[dtype] * (1 + (at != 0))  # log Z of ten thousand has lost digits of its own


@pytest.mark.parametrize("library", LIBRARIES)
def test_rising_logits_and_rows_that_are_far_apart(library):
    """Each block of columns has a greater logit than all before, by more than exponentials can hold."""
    kernels = load(library)
    logits = torch.stack([torch.linspace(-2000, 3000, 5000), torch.linspace(3000, -2000, 5000)])
    expected = reference.cross_entropy_statistics(logits.double(), torch.tensor([4999, 0]))
    found = fused.cross_entropy_statistics(kernels, logits, torch.tensor([4999, 0]))
    assert far(expected.sum_N.float(), found.sum_N) < ROUNDING[torch.float32]


def by_torch(logits, target, z_loss):
    return F.cross_entropy(logits, target, reduction="none") + z_loss * logits.logsumexp(-1).square()


@pytest.mark.parametrize("library", [None, *LIBRARIES])
@pytest.mark.parametrize("consume", [False, True])
def test_the_loss_and_its_gradient(library, consume):
    kernels = None if library is None else load(library)
    ops = Ops() if kernels is None else Ops(
        cross_entropy_statistics=lambda *a: fused.cross_entropy_statistics(kernels, *a),
        cross_entropy_gradient_=lambda *a: fused.cross_entropy_gradient_(kernels, *a),
    )
    generator = torch.Generator().manual_seed(0)
    leaf = torch.randn(17, 41, generator=generator, dtype=torch.float64, requires_grad=True)
    target, weight = torch.randint(0, 41, (17,), generator=generator), torch.rand(17, generator=generator)
    logits = leaf * 3.0
    losses = cross_entropy(logits, target, 0, Z_LOSS, ALONE, ops, consume=consume)
    (grad,) = torch.autograd.grad((losses.loss_N * weight).sum(), leaf, retain_graph=consume)
    expected = by_torch(leaf * 3.0, target, Z_LOSS)
    assert far(expected, losses.loss_N) < 1e-14
    assert far(torch.autograd.grad((expected * weight).sum(), leaf)[0], grad) < 1e-13
    assert torch.equal(logits, leaf * 3.0) is not consume, "the gradient takes the logits' place, or leaves them alone"
    if consume:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad((losses.loss_N * weight).sum(), leaf)


@pytest.mark.parametrize("library", LIBRARIES)
def test_narrow_logits_have_wide_losses_and_narrow_gradients(library):
    kernels = load(library)
    ops = Ops(
        cross_entropy_statistics=lambda *a: fused.cross_entropy_statistics(kernels, *a),
        cross_entropy_gradient_=lambda *a: fused.cross_entropy_gradient_(kernels, *a),
    )
    generator = torch.Generator().manual_seed(0)
    leaf = torch.randn(17, 41, generator=generator).bfloat16().requires_grad_()
    wide, target = leaf.detach().float().requires_grad_(), torch.randint(0, 41, (17,), generator=generator)
    losses = cross_entropy(leaf.view_as(leaf), target, 0, Z_LOSS, ALONE, ops, consume=True)
    expected = by_torch(wide, target, Z_LOSS)
    assert far(expected, losses.loss_N) < ROUNDING[torch.float32]
    expected.sum().backward()
    losses.loss_N.sum().backward()
    assert far(wide.grad.bfloat16(), leaf.grad) < ROUNDING[torch.bfloat16]
