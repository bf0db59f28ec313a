"""The kernels of cross-entropy against their definitions."""

import pytest
import torch
from ops.libraries import DTYPES, LIBRARIES, ROUNDING, far, load

from megaswitch.ops.fused import cross_entropy as fused
from megaswitch.ops.reference import cross_entropy as reference

SHAPES = [(0, 7), (1, 1), (4, 33), (9, 1024), (5, 3001)]
Z_LOSS = 0.3


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
    for narrow in {dtype} if dtype == torch.float64 else {dtype, torch.bfloat16}:
        a, b, given = torch.empty(shape, dtype=narrow), torch.empty(shape, dtype=narrow), logits.clone()
        reference.cross_entropy_gradient(logits, target, log_z, grad, Z_LOSS, a)
        fused.cross_entropy_gradient(kernels, given, target, log_z, grad, Z_LOSS, b)
        assert torch.equal(given, logits)
        if shape[0]:
            assert far(a, b) < ROUNDING[narrow] * (1 + (at != 0))  # log Z of ten thousand has lost digits of its own
    fused.cross_entropy_gradient(kernels, given, target, log_z, grad, Z_LOSS, given)
    reference.cross_entropy_gradient(logits, target, log_z, grad, Z_LOSS, logits)
    if shape[0]:
        assert far(logits, given) < ROUNDING[dtype] * (1 + (at != 0)), "in the logits' place"


@pytest.mark.parametrize("library", LIBRARIES)
def test_rising_logits_and_rows_that_are_far_apart(library):
    """Each block of columns has a greater logit than all before, by more than exponentials can hold."""
    kernels = load(library)
    logits = torch.stack([torch.linspace(-2000, 3000, 5000), torch.linspace(3000, -2000, 5000)])
    expected = reference.cross_entropy_statistics(logits.double(), torch.tensor([4999, 0]))
    found = fused.cross_entropy_statistics(kernels, logits, torch.tensor([4999, 0]))
    assert far(expected.sum_N.float(), found.sum_N) < ROUNDING[torch.float32]
