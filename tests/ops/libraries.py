"""The libraries of kernels that can run here, and how far a result may be from the definition's."""

import os
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from megaswitch.ops.cpp.load import cpp_kernels

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ROUNDING = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2.5e-2 if INTERPRETED else 1e-2}
"""Agreement max|a - b| / max|a| by type: some roundings of its last place. In bfloat16 one is 2^-8 = 4e-3, but 2^-7 in
Triton's interpreter, which cuts digits off where a GPU rounds."""


LIBRARIES = ["triton"] if INTERPRETED else ["cpp"]
"""Triton's kernels run in its interpreter, which a process has from the start or not at all: see test_triton.py."""


def load(name: str):
    return cpp_kernels() if name == "cpp" else interpreted_kernels()


def interpreted_kernels():
    """The functions that are operators on a GPU, for tensors of the CPU."""
    from megaswitch.ops.triton.kernels import IMPLEMENTATIONS

    return SimpleNamespace(**IMPLEMENTATIONS)


def each(ids=None, **values):
    """A test's decorator: for every combination of these values."""

    def decorate(test):
        for name, options in reversed(values.items()):
            test = pytest.mark.parametrize(name, options, ids=ids)(test)
        return test

    return decorate


def numbers(*shape, seed, dtype):
    """The same ones in every type, but for their digits."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def far(expected: Tensor, found: Tensor) -> float:
    assert expected.shape == found.shape
    assert expected.dtype == found.dtype
    scale = expected.detach().double().abs().max().clamp(min=1e-30)
    return float((expected.detach().double() - found.detach().double()).abs().max() / scale)


def gradients(function, leaves, weights):
    """Gradients of sum(output x weight) over all outputs."""
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    total = sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True))
    return outputs, torch.autograd.grad(total, leaves)
