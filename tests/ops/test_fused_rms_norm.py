"""The kernels of RMSNorm against its definition, forward and backward."""

import pytest
import torch
from ops.libraries import DTYPES, LIBRARIES, ROUNDING, each, far, gradients, load, numbers

from megaswitch.ops.fused import rms_norm as fused
from megaswitch.ops.reference import rms_norm as reference

SHAPES = [(1, 1, 8), (3, 5, 16), (2, 70, 33), (1, 130, 2080)]
for_all_rows = each(library=LIBRARIES, dtype=DTYPES, shape=SHAPES)


@for_all_rows
def test_rms_norm(library, dtype, shape):
    kernels = load(library)
    leaves = [numbers(*s, seed=len(s), dtype=dtype).requires_grad_() for s in (shape, shape[-1:])]
    weights = [numbers(*shape, seed=2, dtype=dtype)]
    out, grads = gradients(reference.rms_norm, leaves, weights)
    found, found_grads = gradients(lambda x, w: fused.rms_norm(kernels, x, w), leaves, weights)
    for a, b in zip((*out, *grads), (*found, *found_grads), strict=True):
        assert far(a, b) < ROUNDING[dtype]


@for_all_rows
def test_add_rms_norm(library, dtype, shape):
    kernels = load(library)
    leaves = [numbers(*shape, seed=seed, dtype=dtype).requires_grad_() for seed in (0, 1)]
    leaves.append(numbers(shape[-1], seed=2, dtype=dtype).requires_grad_())
    weights = [numbers(*shape, seed=seed, dtype=dtype) for seed in (3, 4)]
    out, grads = gradients(reference.add_rms_norm, leaves, weights)
    found, found_grads = gradients(lambda x, y, w: fused.add_rms_norm(kernels, x, y, w), leaves, weights)
    for a, b in zip((*out, *grads), (*found, *found_grads), strict=True):
        assert far(a, b) < ROUNDING[dtype]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_stream_that_is_not_contiguous(library):
    kernels = load(library)
    x = numbers(6, 4, 16, seed=0, dtype=torch.float64).transpose(0, 1)
    w = numbers(16, seed=1, dtype=torch.float64)
    assert far(reference.rms_norm(x, w), fused.rms_norm(kernels, x, w)) < 1e-13


@pytest.mark.parametrize("library", LIBRARIES)
def test_weights_of_another_type(library):
    """Masters that are the only copy are cast where they are used."""
    kernels = load(library)
    x = numbers(6, 4, 16, seed=0, dtype=torch.bfloat16)
    w = numbers(16, seed=1, dtype=torch.float32).requires_grad_()
    a = torch.autograd.grad(reference.rms_norm(x, w).sum(), w)[0]
    b = torch.autograd.grad(fused.rms_norm(kernels, x, w).sum(), w)[0]
    assert far(a, b) < ROUNDING[torch.bfloat16]
