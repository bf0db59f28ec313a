"""RMSNorm against torch's own, and its types."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from megaswitch.ops.reference.rms_norm import EPSILON, rms_norm


def number(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / a.detach().abs().max())


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_equals_torchs_with_gradients(scale):
    leaves = [(number(3, 5, 16) * scale).requires_grad_(), number(16, seed=1).requires_grad_()]
    ours, theirs = rms_norm(*leaves), F.rms_norm(leaves[0], (16,), leaves[1], EPSILON)
    assert far(theirs, ours) < 1e-14
    weight = number(3, 5, 16, seed=2)
    for a, b in zip(
        torch.autograd.grad((theirs * weight).sum(), leaves),
        torch.autograd.grad((ours * weight).sum(), leaves),
        strict=True,
    ):
        assert far(a, b) < 1e-13


def test_bf16_is_normed_in_float32_and_then_rounded():
    x, w = number(4, 64).bfloat16(), number(64, seed=1).bfloat16()
    out = rms_norm(x, w)
    assert out.dtype == torch.bfloat16
    in_float32 = F.rms_norm(x.float(), (64,), None, EPSILON)
    assert torch.equal(out, in_float32.bfloat16() * w)
    in_bf16 = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON) * w
    assert not torch.equal(out, in_bf16), "the example does not tell the two apart"


def test_no_token_becomes_nan():
    x = torch.tensor([[0.0] * 8, [1e-30] * 8, [3e38] + [0.0] * 7])
    assert torch.isfinite(rms_norm(x[:2], torch.ones(8))).all()
    assert torch.isfinite(rms_norm(x.double(), torch.ones(8, dtype=torch.float64))).all()
