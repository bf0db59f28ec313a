"""The attention core against torch's scaled_dot_product_attention without its scale, and the masks it is given."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from megaswitch.layers.masks import causal_bias, key_bias
from megaswitch.ops.reference.attention import attention

CPU = torch.device("cpu")


def number(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / a.detach().abs().max())


def qkv(queries: int = 5, keys: int = 7) -> list[Tensor]:
    """[B, L, H, K] each, with gradients."""
    lengths = (queries, keys, keys)
    return [number(2, length, 3, 4, seed=i).requires_grad_() for i, length in enumerate(lengths)]


def torchs(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0).transpose(1, 2)


@pytest.mark.parametrize("shape", [None, (1, 3, 5, 7), (2, 1, 1, 7), (2, 3, 5, 7)])
def test_equals_torchs_without_scale(shape):
    leaves = qkv()
    bias = None if shape is None else number(*shape, seed=9).requires_grad_()
    ours, theirs = attention(*leaves, bias, None), torchs(*leaves, bias)
    assert ours.shape == (2, 5, 3, 4) and far(theirs, ours) < 1e-14
    weight = number(2, 5, 3, 4, seed=5)
    if bias is not None:
        leaves.append(bias)
    expected = torch.autograd.grad((theirs * weight).sum(), leaves)
    for a, b in zip(expected, torch.autograd.grad((ours * weight).sum(), leaves), strict=True):
        assert far(a, b) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_masked_keys_have_no_part_and_rows_without_keys_stay_finite(dtype):
    q, k, v = (x.to(dtype) for x in qkv())
    real = torch.tensor([[True] * 4 + [False] * 3, [False] * 7])
    out = attention(q, k, v, key_bias(real, dtype), None)
    seen = attention(q[:1], k[:1, :4], v[:1, :4], None, None)
    assert out.dtype == dtype and torch.isfinite(out).all()
    rounding = 10 * torch.finfo(dtype).eps
    assert far(seen.double(), out[:1].double()) < rounding
    assert far(v[1:].double().mean(1, keepdim=True).expand(1, 5, 3, 4), out[1:].double()) < rounding


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_masks_add_up_without_overflow(dtype):
    """A causal row over padded keys carries the low bias twice, and the relative positions besides."""
    real = torch.zeros(1, 6, dtype=torch.bool)
    bias = causal_bias(6, dtype, CPU) + key_bias(real, dtype)
    assert bias.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.isfinite(bias).all()
    q, k, v = (x[:1].to(dtype) for x in qkv(6, 6))
    assert torch.isfinite(attention(q, k, v, bias, None)).all()


def test_causal_rows_see_nothing_later():
    q, k, v = (x.detach() for x in qkv(6, 6))
    bias = causal_bias(6, torch.float64, CPU)
    before = attention(q, k, v, bias, None)
    k[:, 4:], v[:, 4:] = 100.0, -50.0
    after = attention(q, k, v, bias, None)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])


def test_dropout_falls_on_the_weights():
    q, k, v = qkv()
    first_key_only = torch.zeros(7, dtype=torch.float64)
    first_key_only[0] = 1.0
    weights = torch.softmax(torch.einsum("bqhk,bmhk->bhqm", q, k), -1)
    out = attention(q, k, v, None, lambda w_BHQM: w_BHQM * first_key_only)
    assert far(torch.einsum("bhq,bhk->bqhk", weights[..., 0], v[:, 0]), out) < 1e-14


def test_logits_and_softmax_are_at_least_float32():
    """Two keys whose logits, 257 and 256, are one number in bf16."""
    q = torch.ones(1, 1, 1, 2, dtype=torch.bfloat16)
    k = torch.tensor([[256.0, 1.0], [256.0, 0.0]], dtype=torch.bfloat16).view(1, 2, 1, 2)
    v = torch.tensor([1.0, 0.0], dtype=torch.bfloat16).view(1, 2, 1, 1)
    out = attention(q, k, v, None, None)
    assert out.item() == pytest.approx(torch.sigmoid(torch.tensor(1.0)).item(), rel=4e-3)
