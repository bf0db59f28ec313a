"""Dropout's kernels against its definition: the numbers are integers before they are anything else, so all is equal."""

import pytest
import torch
from ops.libraries import DTYPES, INTERPRETED, LIBRARIES, ROUNDING, far, gradients, load, numbers

from megaswitch.ops.fused import dropout as fused
from megaswitch.ops.reference import dropout as reference
from megaswitch.ops.reference.random import fold, start

SHAPES = [(0, 8), (3, 0), (1, 1), (5, 33), (200, 130)]
RATES = [0.1, 0.5, 1 / 3, 0.999]


def states(rows, key=1234567890123456789):
    return fold(start(key, torch.device("cpu")), torch.arange(rows))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("first", [0, 77, 2**33 + 5])
def test_equal_bit_for_bit(library, dtype, shape, first):
    kernels, rows = load(library), states(shape[0])
    for rate in RATES:
        x, weight = (numbers(*shape, seed=seed, dtype=dtype) for seed in (0, 1))
        leaves, weights = [x.requires_grad_()], [weight]
        (a,), (da,) = gradients(lambda x, r=rate: reference.dropout(x, rows, r, first), leaves, weights)
        (b,), (db,) = gradients(lambda x, r=rate: fused.dropout(kernels, x, rows, r, first), leaves, weights)
        for expected, found in ((a, b), (da, db)):
            assert torch.equal(expected == 0.0, found == 0.0) and expected.dtype == found.dtype
            cut_off = INTERPRETED and dtype is torch.bfloat16 and found.numel() > 0  # see ROUNDING
            assert far(expected, found) < ROUNDING[dtype] if cut_off else torch.equal(expected, found)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [0.01, 0.3])
def test_jitter(library, dtype, shape, size):
    kernels, rows = load(library), states(shape[0])
    x, weight = (numbers(*shape, seed=seed, dtype=dtype) for seed in (0, 1))
    leaves, weights = [x.requires_grad_()], [weight]
    (a,), (da,) = gradients(lambda x: reference.jitter(x, rows, size), leaves, weights)
    (b,), (db,) = gradients(lambda x: fused.jitter(kernels, x, rows, size), leaves, weights)
    for expected, found in ((a, b), (da, db)):
        assert not found.numel() or far(expected, found) < ROUNDING[dtype]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("rate", RATES)
def test_numbers_on_the_border(library, rate):
    """Numbers that equal the rate as float32 holds it are kept, those one step below are not."""
    kernels, rows, x = load(library), states(300), torch.ones(300, 300)
    drawn = reference.features_uniform(rows, 0, 300)
    for border in (drawn[7, 9].item(), rate):
        assert torch.equal(reference.dropout(x, rows, border, 0), fused.dropout(kernels, x, rows, border, 0))
    assert fused.dropout(kernels, x, rows, drawn[7, 9].item(), 0)[7, 9] > 0


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_numbers_alone(library):
    kernels, rows = load(library), states(50)
    for first, width in ((0, 0), (3, 65), (2**40, 17)):
        a, b = reference.features_uniform(rows, first, width), fused.features_uniform(kernels, rows, first, width)
        assert torch.equal(a, b) and a.dtype == b.dtype


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_is_not_contiguous_and_not_finite(library):
    kernels, rows = load(library), states(12)[::2]
    x = numbers(8, 6, seed=0, dtype=torch.float32).t()
    x[0, 0], x[1, 1] = float("nan"), float("inf")
    a, b = reference.dropout(x, rows, 0.5, 0), fused.dropout(kernels, x, rows, 0.5, 0)
    assert torch.equal(a.nan_to_num(-7.0), b.nan_to_num(-7.0)) and torch.equal(a.isnan(), b.isnan())
